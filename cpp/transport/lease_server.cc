#include "transport/lease_server.h"

#include <array>
#include <utility>

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "transport/lease_table.h"

namespace dlcore {
namespace {

constexpr int kIdleMs = 100;    // how often leases are checked for expiry
constexpr int kPendingMs = 10;  // resolution of a waiting reader's deadline
constexpr size_t kMinKeyBytes = 16;

}  // namespace

Status ValidateServerOptions(const TransportServerOptions& options) {
  if (options.key.size() < kMinKeyBytes) {
    return Status::InvalidArgument("key must be at least 16 bytes; every node needs the same one");
  }
  if (options.leases == nullptr) return Status::InvalidArgument("leases must be set");
  if (options.memory == nullptr) return Status::InvalidArgument("memory must be set");
  if (options.max_connections < 1) {
    return Status::InvalidArgument("max_connections must be at least 1");
  }
  return Status::Ok();
}

LeaseServer::LeaseServer(ServerSpec spec, TransportServerOptions options)
    : spec_(std::move(spec)), options_(std::move(options)), epoll_(epoll_create1(EPOLL_CLOEXEC)) {
  DLCORE_CHECK(epoll_.valid() && wake_.valid()) << "out of file descriptors";
  for (const int fd : {spec_.listener.get(), wake_.fd()}) {
    epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
    epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
  }
  listener_token_ = options_.leases->AddListener([this] { wake_.Signal(); });
  thread_ = std::thread([this] { Run(); });
}

LeaseServer::~LeaseServer() {
  options_.leases->RemoveListener(listener_token_);
  stopping_ = true;
  wake_.Signal();
  thread_.join();
  if (!spec_.unlink_path.empty()) unlink(spec_.unlink_path.c_str());
}

int LeaseServer::WaitMilliseconds() const {
  int wait = kIdleMs;
  for (const auto& [fd, served] : connections_) {
    if (served.connection->copying()) return 0;
    if (served.connection->has_pending()) wait = kPendingMs;
  }
  return wait;
}

void LeaseServer::Run() {
  std::array<epoll_event, 64> events;
  while (!stopping_) {
    const int count = epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()),
                                 WaitMilliseconds());
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = events[static_cast<size_t>(i)];
      if (event.data.fd == spec_.listener.get()) {
        Accept();
      } else if (event.data.fd == wake_.fd()) {
        wake_.Drain();
      } else {
        Serve(event.data.fd, (event.events & ~uint32_t{EPOLLOUT}) != 0);
      }
    }
    options_.leases->Expire();
    AdvanceAll();
  }
  connections_.clear();
}

void LeaseServer::Accept() {
  while (true) {
    UniqueFd fd(accept4(spec_.listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd.valid()) return;
    if (connections_.size() >= static_cast<size_t>(options_.max_connections)) continue;
    TuneSocket(fd.get());
    auto connection = std::make_unique<OwnerConnection>(std::move(fd), spec_.transport, options_,
                                                        spec_.new_plane());
    const int key = connection->fd();
    epoll_event event{.events = EPOLLIN, .data = {.fd = key}};
    epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, key, &event);
    connections_[key] = {std::move(connection), EPOLLIN};
  }
}

void LeaseServer::UpdateInterest(Served* served) {
  const OwnerConnection& connection = *served->connection;
  const uint32_t interest = (connection.wants_read() ? uint32_t{EPOLLIN} : 0U) |
                            (connection.wants_write() ? uint32_t{EPOLLOUT} : 0U);
  if (interest == served->interest) return;
  served->interest = interest;
  epoll_event event{.events = interest, .data = {.fd = connection.fd()}};
  epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, connection.fd(), &event);
}

void LeaseServer::Serve(int fd, bool readable) {
  const auto it = connections_.find(fd);
  if (it == connections_.end() || !readable) return;
  if (!it->second.connection->Receive(std::chrono::steady_clock::now()).ok())
    connections_.erase(it);
}

void LeaseServer::AdvanceAll() {
  const TimePoint now = std::chrono::steady_clock::now();
  for (auto it = connections_.begin(); it != connections_.end();) {
    if (it->second.connection->Advance(now).ok()) {
      UpdateInterest(&it->second);
      ++it;
    } else {
      it = connections_.erase(it);
    }
  }
}

}  // namespace dlcore

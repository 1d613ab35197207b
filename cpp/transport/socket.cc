#include "transport/socket.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

namespace dlcore {
namespace {

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

Status SystemError(const std::string& what) {
  return Status::Unavailable(what + ": " + std::strerror(errno));
}

Status Resolve(const std::string& host, uint16_t port, bool passive, AddressList* out) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0);
  addrinfo* list = nullptr;
  const int rc = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
  if (rc != 0) return Status::Unavailable("cannot resolve '" + host + "': " + gai_strerror(rc));
  out->reset(list);
  return Status::Ok();
}

Status UnixAddress(const std::string& path, sockaddr_un* out) {
  *out = {};
  out->sun_family = AF_UNIX;
  if (path.size() >= sizeof(out->sun_path)) {
    return Status::InvalidArgument("socket path '" + path + "' is longer than " +
                                   std::to_string(sizeof(out->sun_path) - 1) + " bytes");
  }
  std::memcpy(out->sun_path, path.data(), path.size());
  return Status::Ok();
}

}  // namespace

void TuneSocket(int fd) {
  const int on = 1;
  const int user_timeout_ms = 10'000;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout_ms, sizeof(user_timeout_ms));
}

void UniqueFd::Reset() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

Status ListenTcp(const std::string& host, uint16_t port, UniqueFd* out, uint16_t* bound_port) {
  AddressList list(nullptr, &freeaddrinfo);
  if (Status s = Resolve(host, port, true, &list); !s.ok()) return s;
  UniqueFd fd(socket(list->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return SystemError("socket");
  const int on = 1;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (bind(fd.get(), list->ai_addr, list->ai_addrlen) != 0 || listen(fd.get(), 128) != 0) {
    return SystemError("cannot listen on " + host + ":" + std::to_string(port));
  }
  sockaddr_storage bound{};
  socklen_t length = sizeof(bound);
  getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &length);
  const bool v6 = bound.ss_family == AF_INET6;
  *bound_port = ntohs(v6 ? reinterpret_cast<const sockaddr_in6*>(&bound)->sin6_port
                         : reinterpret_cast<const sockaddr_in*>(&bound)->sin_port);
  *out = std::move(fd);
  return Status::Ok();
}

Status ListenUnix(const std::string& dir, UniqueFd* out, std::string* path) {
  uint64_t random = 0;
  if (getrandom(&random, sizeof(random), 0) != sizeof(random)) return SystemError("getrandom");
  char name[32];
  std::snprintf(name, sizeof(name), "/dlcore-%016llx", static_cast<unsigned long long>(random));
  *path = dir + name;
  sockaddr_un address;
  if (Status s = UnixAddress(*path, &address); !s.ok()) return s;
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return SystemError("socket");
  // Nobody can connect between bind and chmod: the socket does not listen yet.
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      chmod(path->c_str(), S_IRUSR | S_IWUSR) != 0 || listen(fd.get(), 128) != 0) {
    return SystemError("cannot listen on " + *path);
  }
  *out = std::move(fd);
  return Status::Ok();
}

Status StartConnectTcp(const std::string& host, uint16_t port, UniqueFd* out) {
  AddressList list(nullptr, &freeaddrinfo);
  if (Status s = Resolve(host, port, false, &list); !s.ok()) return s;
  UniqueFd fd(socket(list->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return SystemError("socket");
  TuneSocket(fd.get());
  if (connect(fd.get(), list->ai_addr, list->ai_addrlen) != 0 && errno != EINPROGRESS) {
    return SystemError("cannot connect to " + host + ":" + std::to_string(port));
  }
  *out = std::move(fd);
  return Status::Ok();
}

Status StartConnectUnix(const std::string& path, UniqueFd* out) {
  sockaddr_un address;
  if (Status s = UnixAddress(path, &address); !s.ok()) return s;
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return SystemError("socket");
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno == EAGAIN) return Status::ResourceExhausted("too many wait to connect to " + path);
    return SystemError("cannot connect to " + path);
  }
  *out = std::move(fd);
  return Status::Ok();
}

Status ConnectResult(int fd) {
  int error = 0;
  socklen_t length = sizeof(error);
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
  if (error == 0) return Status::Ok();
  return Status::Unavailable(std::string("cannot connect: ") + std::strerror(error));
}

int MillisecondsUntil(TimePoint deadline, int limit) {
  const auto left =
      std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
  return static_cast<int>(std::clamp<int64_t>(left.count(), 0, limit));
}

bool WaitForSocket(int fd, short events, int wake_fd, TimePoint deadline) {
  pollfd fds[2] = {{fd, events, 0}, {wake_fd, POLLIN, 0}};
  poll(fds, 2, MillisecondsUntil(deadline, 60'000));
  return fds[0].revents != 0;
}

std::string FormatHostPort(const std::string& host, uint16_t port) {
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

bool ParseHostPort(const std::string& text, std::string* host, uint16_t* port) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) return false;
  *host = text.substr(0, colon);
  if (host->front() == '[' && host->back() == ']') *host = host->substr(1, host->size() - 2);
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, *port);
  return error == std::errc() && stop == end && *port != 0;
}

}  // namespace dlcore

#include "transport/frame_socket.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <sys/socket.h>

namespace dlcore {
namespace {

constexpr size_t kReceiveBytes = 256 * 1024;

uint32_t Bit(FrameType type) { return uint32_t{1} << static_cast<uint8_t>(type); }

// Closes every descriptor of a received control message but the first, which is
// returned: a hostile peer must not fill our table.
UniqueFd TakeFd(msghdr* message) {
  UniqueFd first;
  for (cmsghdr* c = CMSG_FIRSTHDR(message); c != nullptr; c = CMSG_NXTHDR(message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      UniqueFd owned(fd);
      if (!first.valid()) first = std::move(owned);
    }
  }
  return first;
}

}  // namespace

void FrameSocket::Allow(std::initializer_list<FrameType> types) {
  allowed_ = 0;
  for (const FrameType type : types) allowed_ |= Bit(type);
}

void FrameSocket::Push(std::vector<std::byte> bytes, int pass_fd) {
  if (bytes.empty()) return;
  queued_bytes_ += bytes.size();
  outbox_.push_back({std::move(bytes), 0, pass_fd});
}

void FrameSocket::Queue(FrameType type, uint64_t request, std::vector<std::byte> body,
                        int pass_fd) {
  const FrameFault fault = filter_ == nullptr ? FrameFault::kNone : filter_->OnSend(type, &body);
  std::vector<std::byte> header;
  EncodeHeader({type, static_cast<uint32_t>(body.size()), request}, &header);
  switch (fault) {
    case FrameFault::kNone:
      break;
    case FrameFault::kDrop:
      return;
    case FrameFault::kTruncate:
      header.resize(body.empty() ? header.size() / 2 : header.size());
      body.resize(body.size() / 2);
      break;
    case FrameFault::kDisconnect:
      broken_ = true;
      shutdown(fd_.get(), SHUT_RDWR);
      return;
  }
  Push(std::move(header), pass_fd);
  Push(std::move(body), -1);
}

Status FrameSocket::SendOne(Outgoing* outgoing, bool* blocked) {
  iovec piece{outgoing->bytes.data() + outgoing->sent, outgoing->bytes.size() - outgoing->sent};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (outgoing->pass_fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(c), &outgoing->pass_fd, sizeof(int));
  }
  const ssize_t n = sendmsg(fd_.get(), &message, MSG_NOSIGNAL);
  if (n < 0) {
    *blocked = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    return *blocked ? Status::Ok()
                    : Status::Unavailable(std::string("peer lost: ") + std::strerror(errno));
  }
  outgoing->pass_fd = -1;
  outgoing->sent += static_cast<size_t>(n);
  queued_bytes_ -= static_cast<size_t>(n);
  sent_bytes_ += static_cast<size_t>(n);
  return Status::Ok();
}

Status FrameSocket::Flush() {
  if (broken_) return Status::Unavailable("peer lost");
  bool blocked = false;
  while (!outbox_.empty() && !blocked) {
    if (Status s = SendOne(&outbox_.front(), &blocked); !s.ok()) return s;
    if (outbox_.front().sent == outbox_.front().bytes.size()) outbox_.pop_front();
  }
  return Status::Ok();
}

Status FrameSocket::Receive(size_t limit) {
  if (begin_ > 0) {
    std::memmove(inbox_.data(), inbox_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  for (size_t total = 0; total < limit;) {
    const size_t want = std::min(kReceiveBytes, limit - total);
    if (inbox_.size() < end_ + want) inbox_.resize(end_ + want);
    iovec piece{inbox_.data() + end_, want};
    alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t n = recvmsg(fd_.get(), &message, MSG_CMSG_CLOEXEC);
    if (n == 0) return Status::Unavailable("peer closed the connection");
    if (n < 0) {
      if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return Status::Ok();
      return Status::Unavailable(std::string("peer lost: ") + std::strerror(errno));
    }
    if (UniqueFd fd = TakeFd(&message); fd.valid()) passed_fd_ = std::move(fd);
    end_ += static_cast<size_t>(n);
    total += static_cast<size_t>(n);
    if (static_cast<size_t>(n) < want) return Status::Ok();
  }
  return Status::Ok();
}

Status FrameSocket::Next(Frame* out, bool* found) {
  *found = false;
  if (end_ - begin_ < kFrameHeaderBytes) return Status::Ok();
  const std::span<const std::byte> unread(inbox_.data() + begin_, end_ - begin_);
  const auto header = DecodeHeader(unread.first<kFrameHeaderBytes>());
  if (!header) return Status::InvalidArgument("peer sent a malformed frame");
  if ((allowed_ & Bit(header->type)) == 0) {
    return Status::InvalidArgument("peer sent a frame that does not belong here");
  }
  if (unread.size() < kFrameHeaderBytes + header->length) return Status::Ok();
  *out = {header->type, header->request, unread.subspan(kFrameHeaderBytes, header->length)};
  begin_ += kFrameHeaderBytes + header->length;
  *found = true;
  return Status::Ok();
}

}  // namespace dlcore

#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "dlcore/status.h"
#include "transport/socket.h"
#include "transport/wire.h"

namespace dlcore {

enum class FrameFault : uint8_t {
  kNone,
  kDrop,        // the frame is never sent
  kTruncate,    // its second half is never sent, the stream goes on
  kDisconnect,  // the connection ends before it
};

// Decides the fate of every frame one side sends and may change its body; how
// tests inject faults. It
// may sleep, which is what a frozen process looks like.
// Thread safety: called from the transport's threads.
class FrameFilter {
 public:
  virtual ~FrameFilter() = default;
  virtual FrameFault OnSend(FrameType type, std::vector<std::byte>* body) = 0;
};

struct Frame {
  FrameType type = FrameType::kChallenge;
  uint64_t request = 0;
  std::span<const std::byte> body;  // valid until the next Receive
};

// Frames over a non-blocking stream socket. It never trusts a length: a frame
// longer than its type allows, or of a type not allowed now, ends the connection.
// Thread safety: one thread.
class FrameSocket {
 public:
  FrameSocket(UniqueFd fd, FrameFilter* filter) : fd_(std::move(fd)), filter_(filter) {}

  // Only these types are accepted from now on.
  void Allow(std::initializer_list<FrameType> types);

  // Queues a frame; `pass_fd` (>= 0) travels with it over a Unix socket and
  // must stay open until Flush has sent it.
  void Queue(FrameType type, uint64_t request, std::vector<std::byte> body, int pass_fd = -1);
  // Sends what the socket takes. Unavailable when the peer is gone.
  Status Flush();
  // Reads what there is, up to `limit` bytes. Unavailable when the peer is gone.
  Status Receive(size_t limit);
  // The next whole frame. InvalidArgument when the peer speaks another language.
  Status Next(Frame* out, bool* found);

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] bool wants_write() const { return queued_bytes_ > 0; }
  [[nodiscard]] size_t queued_bytes() const { return queued_bytes_; }
  // Bytes sent since construction: a reader that takes nothing does not move it.
  [[nodiscard]] uint64_t sent_bytes() const { return sent_bytes_; }
  // The descriptor the peer passed last, if any.
  [[nodiscard]] UniqueFd TakePassedFd() { return std::move(passed_fd_); }

 private:
  struct Outgoing {
    std::vector<std::byte> bytes;
    size_t sent = 0;
    int pass_fd = -1;
  };
  Status SendOne(Outgoing* outgoing, bool* blocked);
  void Push(std::vector<std::byte> bytes, int pass_fd);

  UniqueFd fd_;
  FrameFilter* filter_;
  uint32_t allowed_ = 0;  // bit per FrameType
  bool broken_ = false;   // a fault ended the connection
  std::deque<Outgoing> outbox_;
  size_t queued_bytes_ = 0;
  uint64_t sent_bytes_ = 0;
  std::vector<std::byte> inbox_;  // [begin_, end_) holds unread bytes
  size_t begin_ = 0;
  size_t end_ = 0;
  UniqueFd passed_fd_;
};

}  // namespace dlcore

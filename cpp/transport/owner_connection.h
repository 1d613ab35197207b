#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "transport/data_plane.h"
#include "transport/frame_socket.h"

namespace dlcore {

// The owner's end of one connection: handshake, then requests. A non-OK Status
// from it means "close this connection"; nothing a peer sends does more harm.
// Thread safety: the server's thread.
class OwnerConnection {
 public:
  OwnerConnection(UniqueFd fd, std::string transport, const TransportServerOptions& options,
                  std::unique_ptr<OwnerPlane> plane);
  ~OwnerConnection();
  OwnerConnection(const OwnerConnection&) = delete;
  OwnerConnection& operator=(const OwnerConnection&) = delete;

  // Takes what the peer sent.
  Status Receive(TimePoint now);
  // Moves everything that can move: copies, answers, deadlines, output.
  Status Advance(TimePoint now);

  [[nodiscard]] int fd() const { return socket_.fd(); }
  [[nodiscard]] bool wants_read() const {
    return num_pending_reads_ < kMaxPendingReads && pending_.size() < kMaxPending;
  }
  [[nodiscard]] bool wants_write() const { return socket_.wants_write(); }
  [[nodiscard]] bool copying() const { return !copies_.empty(); }
  [[nodiscard]] bool has_pending() const { return !pending_.empty(); }

 private:
  static constexpr size_t kMaxPendingReads = 64;
  static constexpr size_t kMaxPending = 4096;  // one per lease that a reader waits for

  // A request not answered yet: an OpenLease (read.ranges empty) or a Read.
  struct Pending {
    FrameType type = FrameType::kRead;
    uint64_t request = 0;
    LeaseProgress at_least;
    TimePoint deadline;
    ReadMessage read;
  };
  struct Copy {
    uint64_t request = 0;
    LeaseRef lease;
    Blob reply;
  };

  Status Handle(const Frame& frame, TimePoint now);
  Status HandleHello(const Frame& frame);
  Status HandleOpenLease(const Frame& frame, TimePoint now);
  Status HandleRead(const Frame& frame, TimePoint now);
  Status HandleRelease(const Frame& frame);
  void HandleCancel(uint64_t request);
  // True when `pending` was answered or its copy has begun.
  bool TryAnswer(Pending* pending, TimePoint now);
  bool TryOpenLease(const Pending& pending);
  bool TryRead(const Pending& pending);
  void Fail(const Pending& pending, const Status& status);
  void AdvanceCopies();
  Status CheckTimeouts(TimePoint now);

  const std::string transport_;
  const TransportServerOptions& options_;
  std::unique_ptr<OwnerPlane> plane_;
  FrameSocket socket_;
  Nonce nonce_;
  bool authenticated_ = false;
  TimePoint opened_;
  uint64_t last_sent_bytes_ = 0;
  TimePoint last_progress_;
  std::deque<Pending> pending_;
  size_t num_pending_reads_ = 0;
  std::deque<Copy> copies_;           // under way, oldest first
  Status plane_status_;               // a plane that failed once is not used again
  std::vector<MemoryRange> sources_;  // scratch
};

}  // namespace dlcore

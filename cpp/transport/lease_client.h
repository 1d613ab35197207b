#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "base/event_fd.h"
#include "transport/data_plane.h"
#include "transport/frame_socket.h"

namespace dlcore {

// Begins to connect a non-blocking socket to the owner; done when it is writable.
using Connector = std::function<Status(UniqueFd* out)>;

struct ClientSpec {
  std::string transport;
  Connector connect;
  ReaderPlaneFactory new_plane;
};

// The reader's side of the common protocol. One thread per client connects
// when there is something to do, cuts reads into slot-sized pieces, and ends
// every operation with one event: done, refused, peer lost, or deadline. A slot
// whose answer never came is not used again while its connection lives, so a
// late answer lands in nobody's data.
class LeaseClient final : public TransportClient {
 public:
  LeaseClient(ClientSpec spec, TransportClientOptions options);
  ~LeaseClient() override;

  void OpenLease(uint64_t tag, LeaseRef lease, LeaseProgress at_least, TimePoint deadline) override;
  void Read(uint64_t tag, LeaseRef lease, int32_t layer, std::vector<ReadRange> ranges,
            TimePoint deadline) override;
  void Cancel(uint64_t tag) override;
  void Release(LeaseRef lease) override;
  void Poll(std::vector<TransportEvent>* out) override;

 private:
  // What the caller asked for; alive until its event.
  struct Operation {
    uint64_t id = 0;
    uint64_t tag = 0;
    bool is_read = false;
    LeaseRef lease;
    int32_t layer = 0;       // of a read
    LeaseProgress at_least;  // of an open
    TimePoint deadline;
    std::vector<ReadRange> ranges;
    size_t next_range = 0;   // first range not wholly sent
    uint64_t next_byte = 0;  // of that range
    int32_t in_flight = 0;
    bool opened = false;  // the OpenLease is sent
    [[nodiscard]] bool all_sent() const { return is_read ? next_range == ranges.size() : opened; }
  };
  // One request on the wire.
  struct Piece {
    Operation* operation = nullptr;  // null once the operation has ended
    uint32_t slot = 0;
    std::vector<MemoryRange> destinations;
    TimePoint deadline;
    bool fetching = false;  // answered; its bytes are on their way to the slot
  };
  using Pieces = std::map<uint64_t, Piece>;  // by request
  struct CancelCommand {
    uint64_t tag;
  };
  struct ReleaseCommand {
    LeaseRef lease;
  };
  using Command = std::variant<std::unique_ptr<Operation>, CancelCommand, ReleaseCommand>;

  void Post(Command command);
  void Run();
  // One round of the thread: output, wait, input, deadlines.
  void Step();
  // Waits for `events` of the socket, a command or the next deadline, then
  // takes commands and ends what is overdue.
  void Wait(short events, TimePoint deadline);
  void TakeCommands();
  void Start(Command command);
  Status Connect();
  Status Handshake(TimePoint deadline);
  Status AwaitFrame(FrameType type, TimePoint deadline, Frame* out);
  void Disconnect(const Status& reason);
  Status SendAll();
  void SendOpen(Operation* operation);
  void SendPiece(Operation* operation);
  Status HandleInput();
  Status HandleReply(const Frame& frame);
  Status HandleLeaseInfo(const Frame& frame, Operation* operation);
  Status HandleReadReply(const Frame& frame, Pieces::iterator it);
  // Starts to fetch an answer; `done` when there is nothing to wait for.
  Status Fetch(Piece* piece, bool* done);
  Status AdvanceFetches();
  // Frees the slot and brings the answer, or why there is none, to its operation.
  void EndPiece(Pieces::iterator it, Status status, std::span<const std::byte> payload);
  // Abandons what `operation` has on the wire and reports its event.
  void End(Operation* operation, Status status, LeaseInfo info = {});
  void ExpireOperations();
  Status CheckStalled() const;
  [[nodiscard]] TimePoint NextDeadline() const;

  const ClientSpec spec_;
  const TransportClientOptions options_;
  EventFd wake_;

  std::mutex mutex_;  // guards commands_ and events_
  std::vector<Command> commands_;
  std::vector<TransportEvent> events_;

  // The client's thread only.
  std::map<uint64_t, std::unique_ptr<Operation>> operations_;  // by arrival
  uint64_t next_operation_ = 0;
  std::vector<LeaseRef> releases_;
  std::unique_ptr<ReaderPlane> plane_;
  std::unique_ptr<FrameSocket> socket_;
  std::vector<uint32_t> free_slots_;
  Pieces pieces_;
  uint64_t next_request_ = 1;

  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace dlcore

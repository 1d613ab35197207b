#include "transport/lease_client.h"

#include <algorithm>
#include <utility>

#include <poll.h>

#include "base/check.h"

namespace dlcore {
namespace {

constexpr size_t kReceiveLimit = 4 * kMaxInlineBytes;

TimePoint Now() { return std::chrono::steady_clock::now(); }

// Keeps sums of deadlines and timeouts far from the clock's end.
TimePoint Bounded(TimePoint deadline) { return std::min(deadline, Now() + std::chrono::hours(1)); }

uint32_t TimeoutMs(TimePoint deadline) {
  return static_cast<uint32_t>(std::max(MillisecondsUntil(deadline, 3'600'000), 1));
}

// As part of the last range where the two touch: the owner checks and copies fewer.
void AppendRange(LayerRange range, std::vector<LayerRange>* ranges) {
  if (!ranges->empty() && ranges->back().offset + ranges->back().length == range.offset) {
    ranges->back().length += range.length;
  } else {
    ranges->push_back(range);
  }
}

Status CheckRanges(const std::vector<ReadRange>& ranges) {
  if (ranges.empty()) return Status::InvalidArgument("ranges: a read needs at least one");
  for (const ReadRange& range : ranges) {
    if (range.length == 0) return Status::InvalidArgument("ranges: a length is 0");
  }
  return Status::Ok();
}

}  // namespace

LeaseClient::LeaseClient(ClientSpec spec, TransportClientOptions options)
    : spec_(std::move(spec)), options_(std::move(options)) {
  DLCORE_CHECK(wake_.valid()) << "out of file descriptors";
  thread_ = std::thread([this] { Run(); });
}

LeaseClient::~LeaseClient() {
  stopping_ = true;
  wake_.Signal();
  thread_.join();
}

// ---- Any thread ----

void LeaseClient::Post(Command command) {
  {
    const std::lock_guard lock(mutex_);
    commands_.push_back(std::move(command));
  }
  wake_.Signal();
}

void LeaseClient::OpenLease(uint64_t tag, LeaseRef lease, LeaseProgress at_least,
                            TimePoint deadline) {
  auto operation = std::make_unique<Operation>();
  operation->tag = tag;
  operation->lease = lease;
  operation->at_least = at_least;
  operation->deadline = Bounded(deadline);
  Post(std::move(operation));
}

void LeaseClient::Read(uint64_t tag, LeaseRef lease, int32_t layer, std::vector<ReadRange> ranges,
                       TimePoint deadline) {
  auto operation = std::make_unique<Operation>();
  operation->tag = tag;
  operation->is_read = true;
  operation->lease = lease;
  operation->layer = layer;
  operation->deadline = Bounded(deadline);
  operation->ranges = std::move(ranges);
  Post(std::move(operation));
}

void LeaseClient::Cancel(uint64_t tag) { Post(CancelCommand{tag}); }

void LeaseClient::Release(LeaseRef lease) { Post(ReleaseCommand{lease}); }

void LeaseClient::Poll(std::vector<TransportEvent>* out) {
  const std::lock_guard lock(mutex_);
  std::move(events_.begin(), events_.end(), std::back_inserter(*out));
  events_.clear();
}

// ---- The client's thread ----

void LeaseClient::Run() {
  while (!stopping_) Step();
  TakeCommands();
  if (socket_ != nullptr) (void)SendAll();  // a last release may still get out
}

void LeaseClient::Step() {
  const bool has_work = !operations_.empty() || !releases_.empty();
  if (socket_ == nullptr && has_work) {
    if (Status s = Connect(); !s.ok()) Disconnect(s);
  }
  if (socket_ != nullptr) {
    if (Status s = SendAll(); !s.ok()) Disconnect(s);
  }
  const bool wants_write = socket_ != nullptr && socket_->wants_write();
  Wait(static_cast<short>(POLLIN | (wants_write ? POLLOUT : 0)), NextDeadline());
  if (socket_ == nullptr) return;
  Status s = HandleInput();
  if (s.ok()) s = AdvanceFetches();
  if (s.ok()) s = CheckStalled();
  if (!s.ok()) Disconnect(s);
}

void LeaseClient::Wait(short events, TimePoint deadline) {
  if (stopping_) return;  // the signal to stop may have been drained already
  const int fd = socket_ == nullptr ? -1 : socket_->fd();
  WaitForSocket(fd, events, wake_.fd(), std::min(deadline, NextDeadline()));
  TakeCommands();
  ExpireOperations();
}

void LeaseClient::TakeCommands() {
  wake_.Drain();
  std::vector<Command> commands;
  {
    const std::lock_guard lock(mutex_);
    commands.swap(commands_);
  }
  for (Command& command : commands) Start(std::move(command));
}

void LeaseClient::Start(Command command) {
  if (const auto* cancel = std::get_if<CancelCommand>(&command)) {
    const auto it = std::find_if(operations_.begin(), operations_.end(), [&](const auto& entry) {
      return entry.second->tag == cancel->tag;
    });
    if (it != operations_.end()) End(it->second.get(), Status::Unavailable("cancelled"));
  } else if (const auto* release = std::get_if<ReleaseCommand>(&command)) {
    releases_.push_back(release->lease);
  } else {
    auto operation = std::move(std::get<std::unique_ptr<Operation>>(command));
    Operation* started = operation.get();
    started->id = next_operation_++;
    operations_[started->id] = std::move(operation);
    if (!started->is_read) return;
    if (Status s = CheckRanges(started->ranges); !s.ok()) End(started, s);
  }
}

void LeaseClient::Disconnect(const Status& reason) {
  socket_.reset();
  plane_.reset();
  pieces_.clear();
  releases_.clear();
  while (!operations_.empty()) End(operations_.begin()->second.get(), reason);
}

Status LeaseClient::SendAll() {
  for (const LeaseRef lease : std::exchange(releases_, {})) {
    socket_->Queue(FrameType::kRelease, 0, Encode(ReleaseMessage{lease}));
  }
  for (const auto& [id, operation] : operations_) {
    if (!operation->is_read && !operation->opened) SendOpen(operation.get());
    while (!operation->all_sent() && !free_slots_.empty()) SendPiece(operation.get());
  }
  return socket_->Flush();
}

void LeaseClient::SendOpen(Operation* operation) {
  const uint64_t request = next_request_++;
  socket_->Queue(FrameType::kOpenLease, request,
                 Encode(OpenLeaseMessage{operation->lease, operation->at_least,
                                         TimeoutMs(operation->deadline)}));
  operation->opened = true;
  operation->in_flight = 1;
  pieces_[request] = {operation, 0, {}, operation->deadline};
}

void LeaseClient::SendPiece(Operation* operation) {
  ReadMessage message{operation->lease,
                      static_cast<uint32_t>(operation->layer),
                      TimeoutMs(operation->deadline),
                      free_slots_.back(),
                      {}};
  free_slots_.pop_back();
  Piece piece{operation, message.slot, {}, operation->deadline};
  uint64_t room = plane_->slot_bytes();
  while (!operation->all_sent() && room > 0 && piece.destinations.size() < kMaxRangesPerRead) {
    const ReadRange& range = operation->ranges[operation->next_range];
    const uint64_t done = operation->next_byte;
    const uint64_t take = std::min(range.length - done, room);
    AppendRange({range.remote_offset + done, take}, &message.ranges);
    piece.destinations.push_back({range.local_address + done, take});
    room -= take;
    operation->next_byte += take;
    if (operation->next_byte == range.length) {
      ++operation->next_range;
      operation->next_byte = 0;
    }
  }
  ++operation->in_flight;
  const uint64_t request = next_request_++;
  socket_->Queue(FrameType::kRead, request, Encode(message));
  pieces_[request] = std::move(piece);
}

Status LeaseClient::HandleInput() {
  const Status received = socket_->Receive(kReceiveLimit);
  Frame frame;
  bool found = true;
  while (found) {
    if (Status s = socket_->Next(&frame, &found); !s.ok()) return s;
    if (!found) break;
    if (Status s = HandleReply(frame); !s.ok()) return s;
  }
  return received;
}

Status LeaseClient::HandleReply(const Frame& frame) {
  const auto it = pieces_.find(frame.request);
  if (it == pieces_.end() || it->second.fetching) {
    return Status::InvalidArgument("peer answered what was not asked");
  }
  const bool asked_read = !it->second.destinations.empty();
  if (asked_read != (frame.type == FrameType::kReadReply)) {
    return Status::InvalidArgument("peer sent the wrong kind of answer");
  }
  if (asked_read) return HandleReadReply(frame, it);
  Operation* operation = it->second.operation;
  pieces_.erase(it);
  return HandleLeaseInfo(frame, operation);
}

Status LeaseClient::HandleLeaseInfo(const Frame& frame, Operation* operation) {
  if (operation == nullptr) return Status::Ok();
  LeaseInfoMessage message;
  if (!Decode(frame.body, &message)) return Status::InvalidArgument("malformed lease info");
  End(operation, message.status, std::move(message.info));
  return Status::Ok();
}

Status LeaseClient::HandleReadReply(const Frame& frame, Pieces::iterator it) {
  ReadReplyMessage message;
  bool here = true;
  if (it->second.operation != nullptr) {  // not ended before its answer came
    if (!Decode(frame.body, &message)) return Status::InvalidArgument("malformed read reply");
    if (message.status.ok() && message.payload.empty()) {
      if (Status s = Fetch(&it->second, &here); !s.ok()) return s;
    }
  }
  if (here) EndPiece(it, message.status, message.payload);
  return Status::Ok();
}

Status LeaseClient::Fetch(Piece* piece, bool* done) {
  const uint64_t bytes = TotalBytes(piece->destinations);
  if (Status s = plane_->BeginFetch(piece->slot, bytes, [this] { wake_.Signal(); }); !s.ok()) {
    return s;
  }
  const Status s = plane_->PollFetch(piece->slot, done);
  piece->fetching = !*done;
  return s;
}

Status LeaseClient::AdvanceFetches() {
  for (auto it = pieces_.begin(); it != pieces_.end();) {
    const auto piece = it++;
    if (!piece->second.fetching) continue;
    bool done = false;
    if (Status s = plane_->PollFetch(piece->second.slot, &done); !s.ok()) return s;
    if (done) EndPiece(piece, Status::Ok(), {});
  }
  return Status::Ok();
}

void LeaseClient::EndPiece(Pieces::iterator it, Status status, std::span<const std::byte> payload) {
  const Piece piece = std::move(it->second);
  pieces_.erase(it);
  free_slots_.push_back(piece.slot);
  Operation* operation = piece.operation;
  if (operation == nullptr) return;
  if (status.ok()) status = plane_->Scatter(piece.slot, payload, piece.destinations);
  --operation->in_flight;
  if (!status.ok()) {
    End(operation, status);
  } else if (operation->all_sent() && operation->in_flight == 0) {
    End(operation, Status::Ok());
  }
}

void LeaseClient::End(Operation* operation, Status status, LeaseInfo info) {
  for (auto& [request, piece] : pieces_) {
    if (piece.operation != operation) continue;
    piece.operation = nullptr;
    if (socket_ != nullptr && !piece.fetching) socket_->Queue(FrameType::kCancel, request, {});
  }
  const auto kind =
      operation->is_read ? TransportEvent::Kind::kReadDone : TransportEvent::Kind::kLeaseOpened;
  {
    const std::lock_guard lock(mutex_);
    events_.push_back({kind, operation->tag, std::move(status), std::move(info)});
  }
  operations_.erase(operation->id);
  if (options_.on_event) options_.on_event();
}

void LeaseClient::ExpireOperations() {
  const TimePoint now = Now();
  for (auto it = operations_.begin(); it != operations_.end();) {
    Operation* operation = (it++)->second.get();
    if (operation->deadline <= now) {
      End(operation, Status::DeadlineExceeded("no answer from the owner by the deadline"));
    }
  }
}

Status LeaseClient::CheckStalled() const {
  const TimePoint overdue = Now() - options_.stall_timeout;
  for (const auto& [request, piece] : pieces_) {
    if (piece.deadline < overdue) return Status::Unavailable("the owner has stalled");
  }
  return Status::Ok();
}

TimePoint LeaseClient::NextDeadline() const {
  TimePoint next = TimePoint::max();
  for (const auto& [id, operation] : operations_) next = std::min(next, operation->deadline);
  for (const auto& [request, piece] : pieces_) {
    next = std::min(next, piece.deadline + options_.stall_timeout);
  }
  return next;
}

}  // namespace dlcore

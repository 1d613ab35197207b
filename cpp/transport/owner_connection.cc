#include "transport/owner_connection.h"

#include <algorithm>
#include <utility>

#include "transport/lease_table.h"

namespace dlcore {
namespace {

constexpr size_t kReceiveLimit = 256 * 1024;
constexpr size_t kMaxQueuedBytes = 4 * kMaxInlineBytes;  // answers waiting for a slow reader
constexpr uint32_t kMaxWaitMs = 600'000;

TimePoint DeadlineAfter(TimePoint now, uint32_t timeout_ms) {
  return now + std::chrono::milliseconds(std::min(timeout_ms, kMaxWaitMs));
}

}  // namespace

OwnerConnection::OwnerConnection(UniqueFd fd, std::string transport,
                                 const TransportServerOptions& options,
                                 std::unique_ptr<OwnerPlane> plane)
    : transport_(std::move(transport)),
      options_(options),
      plane_(std::move(plane)),
      socket_(std::move(fd), options.filter),
      nonce_(RandomNonce()),
      opened_(std::chrono::steady_clock::now()),
      last_progress_(opened_) {
  socket_.Allow({FrameType::kHello});
  socket_.Queue(FrameType::kChallenge, 0, Encode(ChallengeMessage{nonce_}));
}

OwnerConnection::~OwnerConnection() {
  plane_.reset();  // ends the copies before their sources are unpinned
  for (const Copy& copy : copies_) options_.leases->EndRead(copy.lease);
}

Status OwnerConnection::Receive(TimePoint now) {
  const Status received = socket_.Receive(kReceiveLimit);
  Frame frame;
  bool found = true;
  while (found) {  // also what a peer sent just before it closed: a release counts
    if (Status s = socket_.Next(&frame, &found); !s.ok()) return s;
    if (!found) break;
    if (Status s = Handle(frame, now); !s.ok()) return s;
  }
  return received;
}

Status OwnerConnection::Handle(const Frame& frame, TimePoint now) {
  switch (frame.type) {
    case FrameType::kHello:
      return HandleHello(frame);
    case FrameType::kOpenLease:
      return HandleOpenLease(frame, now);
    case FrameType::kRead:
      return HandleRead(frame, now);
    case FrameType::kRelease:
      return HandleRelease(frame);
    case FrameType::kCancel:
      HandleCancel(frame.request);
      return Status::Ok();
    case FrameType::kChallenge:
    case FrameType::kWelcome:
    case FrameType::kLeaseInfo:
    case FrameType::kReadReply:
      break;  // never allowed by the socket
  }
  return Status::InvalidArgument("unexpected frame");
}

Status OwnerConnection::HandleHello(const Frame& frame) {
  HelloMessage hello;
  if (!Decode(frame.body, &hello)) return Status::InvalidArgument("malformed hello");
  const Sha256Digest expected =
      MakeProof(options_.key, AuthRole::kReader, transport_, nonce_, hello.nonce, hello.blob);
  if (!EqualInConstantTime(expected, hello.mac)) {
    options_.leases->CountRefusal(LeaseRefusal::kKey);
    return Status::PermissionDenied("reader does not hold the deployment's key");
  }
  WelcomeMessage welcome;
  if (Status s = plane_->Attach(hello.blob, socket_.TakePassedFd(), &welcome.blob); !s.ok()) {
    return s;
  }
  welcome.mac =
      MakeProof(options_.key, AuthRole::kOwner, transport_, nonce_, hello.nonce, welcome.blob);
  authenticated_ = true;
  socket_.Allow({FrameType::kOpenLease, FrameType::kRead, FrameType::kRelease, FrameType::kCancel});
  socket_.Queue(FrameType::kWelcome, frame.request, Encode(welcome));
  return Status::Ok();
}

Status OwnerConnection::HandleOpenLease(const Frame& frame, TimePoint now) {
  OpenLeaseMessage message;
  if (!Decode(frame.body, &message)) return Status::InvalidArgument("malformed open");
  Pending pending;
  pending.type = FrameType::kOpenLease;
  pending.request = frame.request;
  pending.at_least = message.at_least;
  pending.deadline = DeadlineAfter(now, message.timeout_ms);
  pending.read.lease = message.lease;
  pending_.push_back(std::move(pending));
  return Status::Ok();
}

Status OwnerConnection::HandleRead(const Frame& frame, TimePoint now) {
  Pending pending;
  pending.request = frame.request;
  if (!Decode(frame.body, &pending.read)) return Status::InvalidArgument("malformed read");
  pending.deadline = DeadlineAfter(now, pending.read.timeout_ms);
  uint64_t total = 0;  // cannot overflow: the ranges are bounded in number and size
  for (const LayerRange& range : pending.read.ranges) total += range.length;
  if (pending.read.slot >= plane_->num_slots() || total > plane_->slot_bytes()) {
    Fail(pending, Status::InvalidArgument("read does not fit its slot"));
    return Status::Ok();
  }
  pending_.push_back(std::move(pending));
  ++num_pending_reads_;
  return Status::Ok();
}

Status OwnerConnection::HandleRelease(const Frame& frame) {
  ReleaseMessage message;
  if (!Decode(frame.body, &message)) return Status::InvalidArgument("malformed release");
  // A lease that already ended is what the reader wants: not an error.
  (void)options_.leases->Release(message.lease);
  return Status::Ok();
}

void OwnerConnection::HandleCancel(uint64_t request) {
  const auto it = std::find_if(pending_.begin(), pending_.end(),
                               [&](const Pending& p) { return p.request == request; });
  if (it == pending_.end()) return;  // answered, or its copy is under way
  Fail(*it, Status::Unavailable("cancelled"));
  if (it->type == FrameType::kRead) --num_pending_reads_;
  pending_.erase(it);
}

void OwnerConnection::Fail(const Pending& pending, const Status& status) {
  if (pending.type == FrameType::kOpenLease) {
    socket_.Queue(FrameType::kLeaseInfo, pending.request, Encode(LeaseInfoMessage{status, {}}));
  } else {
    socket_.Queue(FrameType::kReadReply, pending.request, EncodeReadReply(status));
  }
}

bool OwnerConnection::TryAnswer(Pending* pending, TimePoint now) {
  if (pending->type == FrameType::kOpenLease ? TryOpenLease(*pending) : TryRead(*pending)) {
    return true;
  }
  if (now < pending->deadline) return false;
  Fail(*pending, Status::DeadlineExceeded("not written by the deadline"));
  return true;
}

bool OwnerConnection::TryOpenLease(const Pending& pending) {
  if (socket_.queued_bytes() > kMaxQueuedBytes) return false;
  LeaseInfoMessage reply;
  reply.status = options_.leases->Describe(pending.read.lease, pending.at_least, &reply.info);
  if (reply.status.code() == StatusCode::kResourceExhausted) return false;  // not written yet
  socket_.Queue(FrameType::kLeaseInfo, pending.request, Encode(reply));
  return true;
}

bool OwnerConnection::TryRead(const Pending& pending) {
  if (!plane_status_.ok() || copies_.size() >= plane_->max_copies() ||
      socket_.queued_bytes() > kMaxQueuedBytes) {
    return false;
  }
  const ReadMessage& read = pending.read;
  const int32_t layer = read.layer > INT32_MAX ? -1 : static_cast<int32_t>(read.layer);
  Status s = options_.leases->BeginRead(read.lease, layer, read.ranges, &sources_);
  if (s.code() == StatusCode::kResourceExhausted) return false;  // not written yet
  if (!s.ok()) {
    Fail(pending, s);
    return true;
  }
  Copy copy{pending.request, read.lease, EncodeReadReply(Status::Ok())};
  s = plane_->Begin(read.slot, sources_, &copy.reply);
  if (!s.ok()) {
    options_.leases->EndRead(copy.lease);
    Fail(pending, s);
    return true;
  }
  copies_.push_back(std::move(copy));
  AdvanceCopies();
  return true;
}

void OwnerConnection::AdvanceCopies() {
  while (!copies_.empty() && plane_status_.ok()) {
    bool done = false;
    plane_status_ = plane_->Poll(&done);
    if (plane_status_.ok() && !done) return;
    Copy copy = std::move(copies_.front());
    copies_.pop_front();
    options_.leases->EndRead(copy.lease);
    socket_.Queue(FrameType::kReadReply, copy.request,
                  plane_status_.ok() ? std::move(copy.reply) : EncodeReadReply(plane_status_));
  }
}

Status OwnerConnection::CheckTimeouts(TimePoint now) {
  if (!authenticated_ && now - opened_ > options_.handshake_timeout) {
    return Status::DeadlineExceeded("no handshake");
  }
  if (socket_.sent_bytes() != last_sent_bytes_ || !socket_.wants_write()) {
    last_sent_bytes_ = socket_.sent_bytes();
    last_progress_ = now;
  }
  if (now - last_progress_ > options_.stall_timeout) {
    return Status::DeadlineExceeded("the reader takes nothing");
  }
  return Status::Ok();
}

Status OwnerConnection::Advance(TimePoint now) {
  AdvanceCopies();
  std::erase_if(pending_, [&](Pending& pending) {
    if (!TryAnswer(&pending, now)) return false;
    if (pending.type == FrameType::kRead) --num_pending_reads_;
    return true;
  });
  if (Status s = socket_.Flush(); !s.ok()) return s;
  if (!plane_status_.ok()) return plane_status_;
  return CheckTimeouts(now);
}

}  // namespace dlcore

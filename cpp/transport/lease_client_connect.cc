#include <poll.h>

#include "base/check.h"
#include "transport/lease_client.h"

// How a LeaseClient gets from nothing to an authenticated connection.
namespace dlcore {
namespace {

constexpr size_t kReceiveLimit = 4 * kMaxInlineBytes;
constexpr auto kBusyOwner = std::chrono::milliseconds(1);  // until the next attempt to connect

TimePoint Now() { return std::chrono::steady_clock::now(); }

}  // namespace

Status LeaseClient::Connect() {
  const TimePoint deadline = Now() + options_.connect_timeout;
  UniqueFd fd;
  Status connected = spec_.connect(&fd);
  while (connected.code() == StatusCode::kResourceExhausted && !stopping_ && Now() < deadline) {
    Wait(0, Now() + kBusyOwner);
    connected = spec_.connect(&fd);
  }
  if (connected.code() == StatusCode::kResourceExhausted) {
    return Status::Unavailable(connected.message());
  }
  if (!connected.ok()) return connected;
  socket_ = std::make_unique<FrameSocket>(std::move(fd), options_.filter);
  while (!WaitForSocket(socket_->fd(), POLLOUT, -1, TimePoint{})) {
    if (stopping_ || Now() >= deadline) return Status::DeadlineExceeded("peer did not answer");
    Wait(POLLOUT, deadline);
  }
  if (Status s = ConnectResult(socket_->fd()); !s.ok()) return s;
  return Handshake(deadline);
}

Status LeaseClient::Handshake(TimePoint deadline) {
  plane_ = spec_.new_plane();
  Frame frame;
  ChallengeMessage challenge;
  socket_->Allow({FrameType::kChallenge});
  if (Status s = AwaitFrame(FrameType::kChallenge, deadline, &frame); !s.ok()) return s;
  if (!Decode(frame.body, &challenge)) return Status::InvalidArgument("malformed challenge");

  HelloMessage hello;
  int pass_fd = -1;
  if (Status s = plane_->Offer(&hello.blob, &pass_fd); !s.ok()) return s;
  hello.nonce = RandomNonce();
  hello.mac = MakeProof(options_.key, AuthRole::kReader, spec_.transport, challenge.nonce,
                        hello.nonce, hello.blob);
  socket_->Allow({FrameType::kWelcome});
  socket_->Queue(FrameType::kHello, 0, Encode(hello), pass_fd);

  WelcomeMessage welcome;
  if (Status s = AwaitFrame(FrameType::kWelcome, deadline, &frame); !s.ok()) {
    // An owner that closes at this point did not accept the proof.
    return s.code() == StatusCode::kUnavailable
               ? Status::PermissionDenied("the owner refused the handshake: keys differ?")
               : s;
  }
  if (!Decode(frame.body, &welcome)) return Status::InvalidArgument("malformed welcome");
  const Sha256Digest expected = MakeProof(options_.key, AuthRole::kOwner, spec_.transport,
                                          challenge.nonce, hello.nonce, welcome.blob);
  if (!EqualInConstantTime(expected, welcome.mac)) {
    return Status::PermissionDenied("the owner does not hold the deployment's key");
  }
  if (Status s = plane_->Accept(welcome.blob); !s.ok()) return s;
  socket_->Allow({FrameType::kLeaseInfo, FrameType::kReadReply});
  free_slots_.clear();
  for (uint32_t slot = plane_->num_slots(); slot > 0; --slot) free_slots_.push_back(slot - 1);
  return Status::Ok();
}

Status LeaseClient::AwaitFrame(FrameType type, TimePoint deadline, Frame* out) {
  while (true) {
    if (Status s = socket_->Flush(); !s.ok()) return s;
    bool found = false;
    const Status received = socket_->Receive(kReceiveLimit);
    if (Status s = socket_->Next(out, &found); !s.ok()) return s;
    if (found) {
      DLCORE_CHECK(out->type == type) << "a type that was not allowed";
      return Status::Ok();
    }
    if (!received.ok()) return received;
    if (stopping_ || Now() >= deadline) return Status::DeadlineExceeded("no handshake in time");
    Wait(static_cast<short>(POLLIN | (socket_->wants_write() ? POLLOUT : 0)), deadline);
  }
}

}  // namespace dlcore

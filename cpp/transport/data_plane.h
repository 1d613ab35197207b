#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "dlcore/status.h"
#include "transport/pool_memory.h"
#include "transport/socket.h"
#include "transport/wire.h"

// What a transport adds to the common protocol: how payload travels once the
// lease has been checked. The reader offers a window of slots it owns; the
// owner's side puts each answer into one slot, into the reply itself, or where
// the reader fetches it into the slot. A reader never holds a right to the
// owner's pool, so it can read nothing the lease check did not pass.
namespace dlcore {

// The owner's half, one per connection. Thread safety: the server's thread.
class OwnerPlane {
 public:
  virtual ~OwnerPlane() = default;
  // The authenticated reader's offer; fills the blob of the answer.
  virtual Status Attach(const Blob& offer, UniqueFd passed_fd, Blob* answer) = 0;
  [[nodiscard]] virtual uint32_t num_slots() const = 0;
  [[nodiscard]] virtual uint64_t slot_bytes() const = 0;
  // Starts to copy `sources`, one after another, to the start of `slot`; a plane
  // whose payload travels inline appends it to `reply`.
  // REQUIRES: slot < num_slots(), TotalBytes(sources) <= slot_bytes(), fewer than
  // max_copies() copies are under way
  virtual Status Begin(uint32_t slot, std::span<const MemoryRange> sources, Blob* reply) = 0;
  // Copies that may be under way at a time; they end in the order they began.
  [[nodiscard]] virtual size_t max_copies() const { return 1; }
  // Whether the oldest copy has ended; until then its sources stay pinned.
  virtual Status Poll(bool* done) = 0;
};

// The reader's half, one per connection. Thread safety: the client's thread.
class ReaderPlane {
 public:
  virtual ~ReaderPlane() = default;
  // Makes the window; `pass_fd` stays owned by the plane.
  virtual Status Offer(Blob* offer, int* pass_fd) = 0;
  virtual Status Accept(const Blob& answer) = 0;
  [[nodiscard]] virtual uint32_t num_slots() const = 0;
  [[nodiscard]] virtual uint64_t slot_bytes() const = 0;
  // Starts to bring `bytes` of an answer, not empty, into `slot`, where the owner has not
  // put them there. `wake` may be called from any thread once that has ended, and not
  // after this plane is gone.
  virtual Status BeginFetch(uint32_t, uint64_t, std::function<void()>) { return Status::Ok(); }
  // Whether the slot's answer is here. A failure ends the connection.
  virtual Status PollFetch(uint32_t, bool* done) {
    *done = true;
    return Status::Ok();
  }
  // Copies an answer to its destinations; done when it returns. InvalidArgument
  // when `inline_payload` is not what the destinations need.
  virtual Status Scatter(uint32_t slot, std::span<const std::byte> inline_payload,
                         std::span<const MemoryRange> to) = 0;
};

using OwnerPlaneFactory = std::function<std::unique_ptr<OwnerPlane>()>;
using ReaderPlaneFactory = std::function<std::unique_ptr<ReaderPlane>()>;

}  // namespace dlcore

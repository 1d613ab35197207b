#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "dlcore/status.h"
#include "transport/lease_table.h"

namespace dlcore {

// Moves bytes between a pool, wherever it lies, and host memory.
// Thread safety: any thread.
class PoolMemory {
 public:
  virtual ~PoolMemory() = default;
  // Copies the ranges one after another to `to`; done when it returns.
  virtual Status Gather(std::span<const MemoryRange> from, std::byte* to) = 0;
  // Copies `from` to the ranges, one after another; done when it returns.
  virtual Status Scatter(const std::byte* from, std::span<const MemoryRange> to) = 0;
  // The GPU the pool lies on, -1 = host memory.
  [[nodiscard]] virtual int32_t cuda_device() const { return -1; }
  // From here on copies to and from `bytes` may run without staging; see HostPin.
  virtual void Pin(std::span<std::byte> bytes) { static_cast<void>(bytes); }
  virtual void Unpin(std::span<std::byte> bytes) { static_cast<void>(bytes); }
};

// Host memory that many copies will run to and from, for as long as this lives.
class HostPin {
 public:
  HostPin(PoolMemory* memory, std::span<std::byte> bytes) : memory_(memory), bytes_(bytes) {
    memory_->Pin(bytes_);
  }
  ~HostPin() { memory_->Unpin(bytes_); }
  HostPin(const HostPin&) = delete;
  HostPin& operator=(const HostPin&) = delete;

 private:
  PoolMemory* memory_;
  std::span<std::byte> bytes_;
};

// A pool in this process's host memory. Never fails.
PoolMemory& HostPoolMemory();

// A pool on a GPU. Host memory that is not pinned is reached through pinned
// staging buffers; copies run on streams of their own and wait for no other.
// Unavailable without that GPU.
Status NewCudaPoolMemory(int32_t device, std::unique_ptr<PoolMemory>* out);

// Bytes in all ranges.
[[nodiscard]] uint64_t TotalBytes(std::span<const MemoryRange> ranges);

}  // namespace dlcore

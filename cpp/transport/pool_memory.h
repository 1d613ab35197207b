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
};

// A pool in this process's host memory. Never fails.
PoolMemory& HostPoolMemory();

// A pool on a GPU, reached through the driver. Unavailable without one.
Status NewCudaPoolMemory(int32_t device, std::unique_ptr<PoolMemory>* out);

// Bytes in all ranges.
[[nodiscard]] uint64_t TotalBytes(std::span<const MemoryRange> ranges);

}  // namespace dlcore

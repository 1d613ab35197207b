#include "transport/pool_memory.h"

#include <cstring>

namespace dlcore {
namespace {

class HostMemory final : public PoolMemory {
 public:
  Status Gather(std::span<const MemoryRange> from, std::byte* to) override {
    for (const MemoryRange& range : from) {
      std::memcpy(to, reinterpret_cast<const void*>(range.address), range.length);
      to += range.length;
    }
    return Status::Ok();
  }
  Status Scatter(const std::byte* from, std::span<const MemoryRange> to) override {
    for (const MemoryRange& range : to) {
      std::memcpy(reinterpret_cast<void*>(range.address), from, range.length);
      from += range.length;
    }
    return Status::Ok();
  }
};

}  // namespace

PoolMemory& HostPoolMemory() {
  static HostMemory memory;
  return memory;
}

uint64_t TotalBytes(std::span<const MemoryRange> ranges) {
  uint64_t total = 0;
  for (const MemoryRange& range : ranges) total += range.length;
  return total;
}

}  // namespace dlcore

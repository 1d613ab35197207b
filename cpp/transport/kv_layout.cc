#include <algorithm>
#include <string>

#include "dlcore/transport.h"

namespace dlcore {
namespace {

// Bounds far above any real pool, and small enough that products of them fit 63 bits.
constexpr int32_t kMaxGroups = 64;
constexpr int32_t kMaxLayers = 4096;
constexpr int32_t kMaxTpSize = 1024;
constexpr int32_t kMaxBlockSize = 1 << 16;
constexpr int32_t kMaxHeads = 1 << 14;
constexpr int32_t kMaxBytesPerHead = 1 << 20;
constexpr uint64_t kMaxPoolBytes = uint64_t{1} << 50;

Status CheckRange(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return Status::Ok();
  return Status::InvalidArgument(std::string(field) + " is " + std::to_string(value) +
                                 ", must be in [" + std::to_string(low) + ", " +
                                 std::to_string(high) + "]");
}

Status CheckGroup(const KvGroup& group, int32_t tp_size) {
  const struct {
    const char* field;
    int64_t value, low, high;
  } checks[] = {
      {"block_size", group.block_size, 1, kMaxBlockSize},
      {"num_blocks", group.num_blocks, 1, INT32_MAX},
      {"num_planes", group.num_planes, 1, 2},
      {"num_kv_heads", group.num_kv_heads, 1, kMaxHeads},
      {"bytes_per_head", group.bytes_per_head, 1, kMaxBytesPerHead},
  };
  for (const auto& check : checks) {
    if (Status s = CheckRange(check.field, check.value, check.low, check.high); !s.ok()) return s;
  }
  if (group.num_kv_heads % tp_size != 0 && tp_size % group.num_kv_heads != 0) {
    return Status::InvalidArgument("num_kv_heads " + std::to_string(group.num_kv_heads) +
                                   " and tp_size " + std::to_string(tp_size) +
                                   ": one must divide the other");
  }
  return Status::Ok();
}

}  // namespace

Status KvLayout::Validate() const {
  const int64_t num_groups = static_cast<int64_t>(groups.size());
  if (Status s = CheckRange("tp_size", tp_size, 1, kMaxTpSize); !s.ok()) return s;
  if (Status s = CheckRange("tp_rank", tp_rank, 0, tp_size - 1); !s.ok()) return s;
  if (Status s = CheckRange("groups.size", num_groups, 1, kMaxGroups); !s.ok()) return s;
  const int64_t num_layers = static_cast<int64_t>(layers.size());
  if (Status s = CheckRange("layers.size", num_layers, 1, kMaxLayers); !s.ok()) return s;
  for (size_t g = 0; g < groups.size(); ++g) {
    if (Status s = CheckGroup(groups[g], tp_size); !s.ok()) return s;
    const uint64_t blocks = static_cast<uint64_t>(groups[g].num_blocks);
    if (bytes_per_block(static_cast<int32_t>(g)) > kMaxPoolBytes / blocks) {
      return Status::InvalidArgument("a layer's blocks exceed 2^50 bytes");
    }
  }
  for (const KvLayer& layer : layers) {
    if (Status s = CheckRange("layer.group", layer.group, 0, num_groups - 1); !s.ok()) return s;
  }
  return Status::Ok();
}

int32_t KvLayout::first_head(int32_t g) const {
  const int64_t heads = groups[static_cast<size_t>(g)].num_kv_heads;
  return static_cast<int32_t>(tp_rank * heads / tp_size);
}

int32_t KvLayout::num_local_heads(int32_t g) const {
  return std::max(groups[static_cast<size_t>(g)].num_kv_heads / tp_size, 1);
}

uint64_t KvLayout::bytes_per_block(int32_t g) const {
  const KvGroup& group = groups[static_cast<size_t>(g)];
  return static_cast<uint64_t>(group.num_planes) * static_cast<uint64_t>(num_local_heads(g)) *
         static_cast<uint64_t>(group.block_size) * static_cast<uint64_t>(group.bytes_per_head);
}

}  // namespace dlcore

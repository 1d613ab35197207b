#include "kv/cache_group.h"

#include <string>

namespace dlcore {
namespace {

Status ValidateGroup(const CacheGroupSpec& group, const std::string& name) {
  switch (group.kind) {
    case CacheKind::kPaged:
      break;
    case CacheKind::kWindow:
      return Status::InvalidArgument(name +
                                     ".kind is window: this engine keeps paged groups only; "
                                     "declare the group as paged (it keeps every token)");
    case CacheKind::kState:
      return Status::InvalidArgument(name + ".kind is state: this engine keeps paged groups only");
  }
  if (group.num_layers <= 0) {
    return Status::InvalidArgument(name + ".num_layers must be positive");
  }
  if (group.bytes_per_block_per_layer <= 0) {
    return Status::InvalidArgument(name + ".bytes_per_block_per_layer must be positive");
  }
  return Status::Ok();
}

}  // namespace

Status ValidateCacheGroups(std::span<const CacheGroupSpec> groups) {
  for (size_t i = 0; i < groups.size(); ++i) {
    const Status status = ValidateGroup(groups[i], "cache_groups[" + std::to_string(i) + "]");
    if (!status.ok()) return status;
  }
  return Status::Ok();
}

int64_t BytesPerBlock(std::span<const CacheGroupSpec> groups) {
  int64_t bytes = 0;
  for (const CacheGroupSpec& g : groups) bytes += g.num_layers * g.bytes_per_block_per_layer;
  return bytes;
}

}  // namespace dlcore

#pragma once

#include <cstdint>
#include <span>

#include "dlcore/options.h"
#include "dlcore/status.h"

namespace dlcore {

// Checks that the KV manager can keep these groups. One block id indexes the
// same block of every PAGED group, so several PAGED groups share one table.
Status ValidateCacheGroups(std::span<const CacheGroupSpec> groups);

// Bytes that one block id stands for, over all groups and layers.
int64_t BytesPerBlock(std::span<const CacheGroupSpec> groups);

}  // namespace dlcore

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dlcore/status.h"
#include "dlcore/transport.h"

namespace dlcore {

// Bytes of any layer of a group, as offsets from the layer's base on each side.
struct CopyRange {
  uint64_t remote_offset = 0;
  uint64_t local_offset = 0;
  uint64_t length = 0;

  friend bool operator==(const CopyRange&, const CopyRange&) = default;
};

// Tokens [first_token, first_token + num_tokens) of one sequence in one group.
struct CopySpec {
  int32_t group = 0;
  std::span<const BlockId> remote_blocks;  // block tables from token 0 on
  std::span<const BlockId> local_blocks;
  int32_t first_token = 0;
  int32_t num_tokens = 0;
};

// The ranges that move `spec`'s tokens, of the heads both ranks hold, from a
// pool laid out as `remote` to one laid out as `local`. Block size, block count
// and TP degree may differ. Ranges that touch on both sides are merged.
// Where whole blocks have the same shape, the unused tail of the last block is
// copied with it: one range instead of one per head.
// A head that several ranks hold is served by the first of them; from the
// others the plan is empty.
// REQUIRES: both layouts validate
// Fails with InvalidArgument when the groups hold different things or a table
// is too short or names a block outside its pool.
Status BuildCopyPlan(const KvLayout& remote, const KvLayout& local, const CopySpec& spec,
                     std::vector<CopyRange>* out);

// TP ranks of the owner that `local` must read from so that it gets each of its
// heads exactly once, in increasing order.
std::vector<int32_t> SourceRanks(const KvLayout& local, int32_t remote_tp_size);

}  // namespace dlcore

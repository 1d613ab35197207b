#include "transport/copy_plan.h"

#include <algorithm>
#include <string>

namespace dlcore {
namespace {

// Where one group's bytes lie within a block on one side.
class BlockShape {
 public:
  BlockShape(const KvLayout& layout, int32_t group)
      : group_(layout.groups[static_cast<size_t>(group)]),
        first_head_(layout.first_head(group)),
        heads_(layout.num_local_heads(group)),
        block_bytes_(layout.bytes_per_block(group)) {}

  [[nodiscard]] int32_t first_head() const { return first_head_; }
  [[nodiscard]] int32_t end_head() const { return first_head_ + heads_; }
  [[nodiscard]] int32_t block_size() const { return group_.block_size; }
  [[nodiscard]] uint64_t block_bytes() const { return block_bytes_; }
  [[nodiscard]] uint64_t BlockOffset(BlockId block) const {
    return static_cast<uint64_t>(block.value) * block_bytes_;
  }
  // Offset in a block of (plane, head of the model, token of the block).
  [[nodiscard]] uint64_t Offset(int32_t plane, int32_t head, int32_t token) const {
    const int64_t row = int64_t{plane} * heads_ + (head - first_head_);
    return static_cast<uint64_t>(row * group_.block_size + token) *
           static_cast<uint64_t>(group_.bytes_per_head);
  }

 private:
  KvGroup group_;
  int32_t first_head_;
  int32_t heads_;
  uint64_t block_bytes_;
};

int32_t EndHead(const KvLayout& layout, int32_t g) {
  return layout.first_head(g) + layout.num_local_heads(g);
}

// With more ranks than heads, several hold the same head: the first serves it.
bool ServesItsHeads(const KvLayout& layout, int32_t g) {
  const int32_t heads = layout.groups[static_cast<size_t>(g)].num_kv_heads;
  return layout.tp_rank % std::max(layout.tp_size / heads, 1) == 0;
}

void Append(const CopyRange& range, std::vector<CopyRange>* out) {
  if (!out->empty()) {
    CopyRange& last = out->back();
    if (last.remote_offset + last.length == range.remote_offset &&
        last.local_offset + last.length == range.local_offset) {
      last.length += range.length;
      return;
    }
  }
  out->push_back(range);
}

Status CheckTable(const char* side, std::span<const BlockId> blocks, const KvGroup& group,
                  int64_t end_token) {
  const int64_t needed = (end_token + group.block_size - 1) / group.block_size;
  if (needed > static_cast<int64_t>(blocks.size())) {
    return Status::InvalidArgument(std::string(side) + " block table holds " +
                                   std::to_string(blocks.size()) + " blocks, " +
                                   std::to_string(needed) + " needed");
  }
  for (const BlockId block : blocks.first(static_cast<size_t>(needed))) {
    if (block.value < 0 || block.value >= group.num_blocks) {
      return Status::InvalidArgument(std::string(side) + " block " + std::to_string(block.value) +
                                     " is outside its pool of " + std::to_string(group.num_blocks));
    }
  }
  return Status::Ok();
}

Status CheckSpec(const KvLayout& remote, const KvLayout& local, const CopySpec& spec) {
  const size_t g = static_cast<size_t>(spec.group);
  if (spec.group < 0 || g >= remote.groups.size() || g >= local.groups.size()) {
    return Status::InvalidArgument("group " + std::to_string(spec.group) +
                                   " does not exist on both sides");
  }
  const KvGroup& from = remote.groups[g];
  const KvGroup& to = local.groups[g];
  if (from.num_planes != to.num_planes || from.num_kv_heads != to.num_kv_heads ||
      from.bytes_per_head != to.bytes_per_head) {
    return Status::InvalidArgument(
        "the two pools hold different models: num_planes, num_kv_heads and bytes_per_head of "
        "group " +
        std::to_string(spec.group) + " must be equal");
  }
  if (spec.first_token < 0 || spec.num_tokens < 0) {
    return Status::InvalidArgument("first_token and num_tokens must not be negative");
  }
  const int64_t end = int64_t{spec.first_token} + spec.num_tokens;
  if (Status s = CheckTable("remote", spec.remote_blocks, from, end); !s.ok()) return s;
  return CheckTable("local", spec.local_blocks, to, end);
}

// The same head range and block size on both sides: a block is a block.
void CopyWholeBlocks(const BlockShape& shape, const CopySpec& spec, std::vector<CopyRange>* out) {
  const int32_t end = spec.first_token + spec.num_tokens;
  for (int32_t token = spec.first_token; token < end; token += shape.block_size()) {
    const size_t index = static_cast<size_t>(token / shape.block_size());
    Append({shape.BlockOffset(spec.remote_blocks[index]),
            shape.BlockOffset(spec.local_blocks[index]), shape.block_bytes()},
           out);
  }
}

// In the order of the remote blocks' bytes, so that a read asks for few ranges.
void CopyPieces(const BlockShape& from, const BlockShape& to, int32_t num_planes,
                uint64_t bytes_per_head, const CopySpec& spec, std::vector<CopyRange>* out) {
  const int32_t first_head = std::max(from.first_head(), to.first_head());
  const int32_t end_head = std::min(from.end_head(), to.end_head());
  const int32_t end = spec.first_token + spec.num_tokens;
  for (int32_t begin = spec.first_token; begin < end;) {
    const int32_t begin_in_block = begin % from.block_size();
    const int32_t stop = std::min(begin - begin_in_block + from.block_size(), end);
    const uint64_t from_base =
        from.BlockOffset(spec.remote_blocks[static_cast<size_t>(begin / from.block_size())]);
    for (int32_t plane = 0; plane < num_planes; ++plane) {
      for (int32_t head = first_head; head < end_head; ++head) {
        for (int32_t token = begin; token < stop;) {
          const int32_t to_token = token % to.block_size();
          const int32_t count = std::min(to.block_size() - to_token, stop - token);
          const uint64_t to_base =
              to.BlockOffset(spec.local_blocks[static_cast<size_t>(token / to.block_size())]);
          Append({from_base + from.Offset(plane, head, begin_in_block + token - begin),
                  to_base + to.Offset(plane, head, to_token),
                  static_cast<uint64_t>(count) * bytes_per_head},
                 out);
          token += count;
        }
      }
    }
    begin = stop;
  }
}

}  // namespace

Status BuildCopyPlan(const KvLayout& remote, const KvLayout& local, const CopySpec& spec,
                     std::vector<CopyRange>* out) {
  out->clear();
  if (Status s = CheckSpec(remote, local, spec); !s.ok()) return s;
  if (!ServesItsHeads(remote, spec.group)) return Status::Ok();
  const KvGroup& group = local.groups[static_cast<size_t>(spec.group)];
  const BlockShape from(remote, spec.group);
  const BlockShape to(local, spec.group);
  const bool same_shape = from.block_size() == to.block_size() &&
                          from.first_head() == to.first_head() && from.end_head() == to.end_head();
  if (same_shape && spec.first_token % to.block_size() == 0) {
    CopyWholeBlocks(from, spec, out);
  } else {
    CopyPieces(from, to, group.num_planes, static_cast<uint64_t>(group.bytes_per_head), spec, out);
  }
  return Status::Ok();
}

std::vector<int32_t> SourceRanks(const KvLayout& local, int32_t remote_tp_size) {
  std::vector<int32_t> ranks;
  KvLayout remote = local;
  remote.tp_size = remote_tp_size;
  for (remote.tp_rank = 0; remote.tp_rank < remote_tp_size; ++remote.tp_rank) {
    bool needed = false;
    for (int32_t g = 0; g < static_cast<int32_t>(local.groups.size()); ++g) {
      needed |= ServesItsHeads(remote, g) && remote.first_head(g) < EndHead(local, g) &&
                local.first_head(g) < EndHead(remote, g);
    }
    if (needed) ranks.push_back(remote.tp_rank);
  }
  return ranks;
}

}  // namespace dlcore

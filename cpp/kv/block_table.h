#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dlcore/types.h"

namespace dlcore {

// The blocks that hold one sequence's KV, in order, and how many leading
// entries the device's copy of the row already has.
// Thread safety: engine thread only.
class BlockTable {
 public:
  void Reserve(int32_t num_blocks) { blocks_.reserve(static_cast<size_t>(num_blocks)); }

  [[nodiscard]] int32_t size() const { return static_cast<int32_t>(blocks_.size()); }
  [[nodiscard]] BlockId operator[](int32_t i) const { return blocks_[static_cast<size_t>(i)]; }
  [[nodiscard]] std::span<const BlockId> blocks() const { return blocks_; }

  // For allocation straight into the table.
  [[nodiscard]] std::vector<BlockId>* tail() { return &blocks_; }

  // Points entry `i` at a block with equal content; the device is told again.
  void Replace(int32_t i, BlockId block) {
    blocks_[static_cast<size_t>(i)] = block;
    num_sent_ = num_sent_ < i ? num_sent_ : i;
  }

  void Clear() {
    blocks_.clear();
    num_sent_ = 0;
  }

  [[nodiscard]] int32_t num_sent() const { return num_sent_; }
  [[nodiscard]] int32_t num_unsent() const { return size() - num_sent_; }
  void MarkSent() { num_sent_ = size(); }

 private:
  std::vector<BlockId> blocks_;
  int32_t num_sent_ = 0;
};

}  // namespace dlcore

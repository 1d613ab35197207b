#include "kv/block_pool.h"

#include "base/check.h"

namespace dlcore {

BlockPool::BlockPool(int32_t num_blocks) : states_(static_cast<size_t>(num_blocks)) {
  free_.reserve(states_.size());
  for (int32_t i = num_blocks - 1; i >= 0; --i) free_.emplace_back(i);
}

bool BlockPool::Allocate(int32_t count, std::vector<BlockId>* out) {
  if (count > num_free()) return false;
  for (int32_t i = 0; i < count; ++i) {
    const BlockId block = free_.back();
    free_.pop_back();
    state(block).refs = 1;
    out->push_back(block);
  }
  num_referenced_ += count;
  return true;
}

void BlockPool::Ref(BlockId block) {
  State& s = state(block);
  DLCORE_CHECK(s.refs > 0 || s.in_cache) << "block " << block.value << " is free";
  if (s.refs++ == 0) {
    --num_cached_;
    ++num_referenced_;
  }
}

void BlockPool::Unref(BlockId block) {
  State& s = state(block);
  DLCORE_CHECK(s.refs > 0) << "block " << block.value << " has no reference";
  if (--s.refs > 0) return;
  --num_referenced_;
  if (s.in_cache) {
    ++num_cached_;
  } else {
    free_.push_back(block);
  }
}

void BlockPool::EnterCache(BlockId block) {
  State& s = state(block);
  DLCORE_CHECK(s.refs > 0 && !s.in_cache) << "block " << block.value;
  s.in_cache = true;
}

void BlockPool::Evict(BlockId block) {
  State& s = state(block);
  DLCORE_CHECK(s.refs == 0 && s.in_cache) << "block " << block.value << " is in use";
  s.in_cache = false;
  --num_cached_;
  free_.push_back(block);
}

}  // namespace dlcore

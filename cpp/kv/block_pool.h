#pragma once

#include <cstdint>
#include <vector>

#include "dlcore/types.h"

namespace dlcore {

// BlockPool hands out fixed-size KV blocks by index. It never touches device
// memory, so every test of it runs on a CPU-only machine.
//
// A block is in exactly one state, so free + referenced + cached = total:
//   free        in the free list
//   referenced  in at least one sequence's table (and perhaps in the prefix cache)
//   cached      in the prefix cache alone; may be evicted
// Every operation is O(1) per block. Thread safety: engine thread only.
class BlockPool {
 public:
  // REQUIRES: num_blocks >= 0
  explicit BlockPool(int32_t num_blocks);

  // Appends `count` blocks with one reference each to `out`, or none.
  // False when fewer than `count` are free. REQUIRES: count >= 0
  [[nodiscard]] bool Allocate(int32_t count, std::vector<BlockId>* out);

  // One more reader. REQUIRES: the block is referenced or cached
  void Ref(BlockId block);
  // One reference less; the last one makes the block cached or free.
  // REQUIRES: the block is referenced
  void Unref(BlockId block);

  // The prefix cache now holds the block too. REQUIRES: referenced, not in the cache
  void EnterCache(BlockId block);
  // The prefix cache gives the block back to the free list. REQUIRES: cached
  void Evict(BlockId block);

  [[nodiscard]] int32_t num_blocks() const { return static_cast<int32_t>(states_.size()); }
  [[nodiscard]] int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  [[nodiscard]] int32_t num_cached() const { return num_cached_; }
  [[nodiscard]] int32_t num_referenced() const { return num_referenced_; }
  [[nodiscard]] int32_t ref_count(BlockId block) const { return state(block).refs; }
  [[nodiscard]] bool in_cache(BlockId block) const { return state(block).in_cache; }

 private:
  struct State {
    int32_t refs = 0;
    bool in_cache = false;
  };

  [[nodiscard]] const State& state(BlockId b) const {
    return states_[static_cast<size_t>(b.value)];
  }
  [[nodiscard]] State& state(BlockId b) { return states_[static_cast<size_t>(b.value)]; }

  std::vector<State> states_;  // [num_blocks]
  std::vector<BlockId> free_;  // a stack; the lowest indices come out first
  int32_t num_cached_ = 0;
  int32_t num_referenced_ = 0;
};

}  // namespace dlcore

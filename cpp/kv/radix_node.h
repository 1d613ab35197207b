#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dlcore/types.h"

namespace dlcore {

// A node of the radix tree and the edge that leads to it: a run of full blocks
// with no branch inside. A root has no blocks and stands for one cache salt.
struct RadixNode {
  RadixNode* parent = nullptr;  // null: a root
  std::vector<BlockId> blocks;  // the run, in order
  int32_t start_depth = 0;      // blocks between the root and this run
  int32_t num_children = 0;
  uint64_t last_used = 0;
  int32_t heap_index = -1;  // place in the eviction heap, -1 = not there
  int32_t num_users = 0;    // roots: sequences that hold it
  std::string salt;         // roots

  [[nodiscard]] bool is_root() const { return parent == nullptr; }
  [[nodiscard]] BlockId back() const { return blocks.back(); }
};

// The leaves that may be evicted, least recently used first.
// Push, Remove and Update are O(log n). Thread safety: engine thread only.
class EvictionHeap {
 public:
  [[nodiscard]] bool empty() const { return heap_.empty(); }
  [[nodiscard]] RadixNode* top() const { return heap_.front(); }

  // Puts the node in, or moves it to the place its last_used asks for.
  void PushOrUpdate(RadixNode* node);
  // No-op when the node is not in the heap.
  void Remove(RadixNode* node);

 private:
  void SiftUp(size_t i);
  void SiftDown(size_t i);
  void Place(size_t i, RadixNode* node);

  std::vector<RadixNode*> heap_;
};

}  // namespace dlcore

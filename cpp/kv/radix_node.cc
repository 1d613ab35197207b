#include "kv/radix_node.h"

namespace dlcore {

void EvictionHeap::PushOrUpdate(RadixNode* node) {
  if (node->heap_index < 0) {
    heap_.push_back(node);
    node->heap_index = static_cast<int32_t>(heap_.size()) - 1;
  }
  SiftUp(static_cast<size_t>(node->heap_index));
  SiftDown(static_cast<size_t>(node->heap_index));
}

void EvictionHeap::Remove(RadixNode* node) {
  if (node->heap_index < 0) return;
  const auto hole = static_cast<size_t>(node->heap_index);
  RadixNode* last = heap_.back();
  heap_.pop_back();
  node->heap_index = -1;
  if (last == node) return;
  Place(hole, last);
  PushOrUpdate(last);
}

void EvictionHeap::SiftUp(size_t i) {
  RadixNode* node = heap_[i];
  while (i > 0) {
    const size_t parent = (i - 1) / 2;
    if (heap_[parent]->last_used <= node->last_used) break;
    Place(i, heap_[parent]);
    i = parent;
  }
  Place(i, node);
}

void EvictionHeap::SiftDown(size_t i) {
  RadixNode* node = heap_[i];
  while (true) {
    size_t child = 2 * i + 1;
    if (child >= heap_.size()) break;
    if (child + 1 < heap_.size() && heap_[child + 1]->last_used < heap_[child]->last_used) ++child;
    if (node->last_used <= heap_[child]->last_used) break;
    Place(i, heap_[child]);
    i = child;
  }
  Place(i, node);
}

void EvictionHeap::Place(size_t i, RadixNode* node) {
  heap_[i] = node;
  node->heap_index = static_cast<int32_t>(i);
}

}  // namespace dlcore

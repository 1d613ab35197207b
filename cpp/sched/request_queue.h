#pragma once

#include <cstddef>
#include <set>

#include "sched/sequence.h"

namespace dlcore {

// True when `a` goes before `b`: smaller priority first, then earlier arrival.
struct RunsBefore {
  bool operator()(const Sequence* a, const Sequence* b) const {
    if (a->priority() != b->priority()) return a->priority() < b->priority();
    return a->arrival() < b->arrival();
  }
};

// Sequences that wait to be admitted, best first. A preempted sequence returns
// to the place its arrival gives it. Everything is O(log n).
// Thread safety: engine thread only.
class RequestQueue {
 public:
  using Iterator = std::set<Sequence*, RunsBefore>::const_iterator;

  void Push(Sequence* sequence) { waiting_.insert(sequence); }
  void Remove(Sequence* sequence) { waiting_.erase(sequence); }
  Iterator Remove(Iterator it) { return waiting_.erase(it); }

  [[nodiscard]] bool empty() const { return waiting_.empty(); }
  [[nodiscard]] size_t size() const { return waiting_.size(); }
  [[nodiscard]] Iterator begin() const { return waiting_.begin(); }
  [[nodiscard]] Iterator end() const { return waiting_.end(); }

 private:
  std::set<Sequence*, RunsBefore> waiting_;
};

}  // namespace dlcore

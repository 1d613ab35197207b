#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "dlcore/types.h"
#include "sched/step_plan.h"

namespace dlcore {

// A plan and what must wait until the device is done with it.
struct PlanRecord {
  StepPlan plan;
  std::vector<BlockId> retired;  // duplicates it may still read
};

// The plans not yet committed, oldest first; at most two. Records are reused, so
// planning allocates nothing once their vectors have grown.
// Thread safety: engine thread only.
class PlanRing {
 public:
  static constexpr int32_t kCapacity = 2;

  [[nodiscard]] int32_t size() const { return size_; }
  [[nodiscard]] bool full() const { return size_ == kCapacity; }
  [[nodiscard]] bool empty() const { return size_ == 0; }

  // The record to plan into; it counts only after Push. REQUIRES: !full()
  PlanRecord& Next() {
    DLCORE_CHECK(!full()) << "two plans are uncommitted";
    return records_[Index(size_)];
  }
  void Push() { ++size_; }

  // REQUIRES: !empty()
  PlanRecord& Oldest() {
    DLCORE_CHECK(!empty()) << "commit without a plan";
    return records_[first_];
  }
  PlanRecord& Newest() { return records_[Index(size_ - 1)]; }
  void Pop() {
    first_ = Index(1);
    --size_;
  }

 private:
  [[nodiscard]] size_t Index(int32_t i) const {
    return (first_ + static_cast<size_t>(i)) % kCapacity;
  }

  std::array<PlanRecord, kCapacity> records_;
  size_t first_ = 0;
  int32_t size_ = 0;
};

}  // namespace dlcore

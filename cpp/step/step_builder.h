#pragma once

#include <cstddef>
#include <span>

#include "dlcore/step_layout.h"
#include "sched/step_plan.h"

namespace dlcore {

// Turns a plan into the bytes of the input arena. Writes only what the step
// uses: block tables live on the device, and a step carries their changes
// (new blocks of a sequence), so its cost does not grow with context length.
// Thread safety: engine thread only. No allocation in steady state.
class StepBuilder {
 public:
  explicit StepBuilder(const StepLimits& limits);

  // Fills `mirror` for `plan` run as `key` (the bucket chosen by the graph
  // table: key counts >= the plan's). Returns how many bytes from the start are
  // in use: what the one host-to-device copy must carry.
  // REQUIRES: mirror.size() >= StepLayout::MaxInputBytes(limits)
  size_t Fill(const StepPlan& plan, const StepKey& key, std::span<std::byte> mirror);

 private:
  StepLimits limits_;
};

}  // namespace dlcore

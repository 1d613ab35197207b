#pragma once

#include <cstddef>
#include <span>

#include "dlcore/step_layout.h"
#include "sched/scheduler.h"

namespace dlcore {

// Where the fields of an output arena lie for one key; remembers the last key,
// so a steady state computes nothing.
// Thread safety: engine thread only.
class OutputView {
 public:
  OutputView() = default;
  explicit OutputView(const StepLimits& limits) : limits_(limits) {}

  // Bytes the device-to-host copy of a step run as `key` must carry.
  size_t Bytes(const StepKey& key);
  // The first `num_rows` rows of a copied output arena, as the scheduler reads them.
  StepResult Read(const StepKey& key, std::span<const std::byte> arena, int32_t num_rows);

 private:
  void Prepare(const StepKey& key);

  StepLimits limits_;
  StepKey key_;
  size_t bytes_ = 0;  // 0 = no key yet
  size_t sampled_tokens_ = 0;
  // kFull only.
  size_t sampled_logprobs_ = 0;
  size_t sampled_ranks_ = 0;
  size_t top_ids_ = 0;
  size_t top_logprobs_ = 0;
};

}  // namespace dlcore

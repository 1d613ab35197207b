#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dlcore/step_layout.h"
#include "dlcore/types.h"

namespace dlcore {

class Sequence;

// One sequence's share of a step: query tokens [start, start + num_tokens).
struct PlannedSequence {
  Sequence* sequence = nullptr;
  int32_t start = 0;
  int32_t num_tokens = 0;
  bool samples = false;         // the last query token reaches the end of what is known
  int32_t num_prompt_rows = 0;  // prompt-logprob rows this chunk asks for
  bool sends_history = false;   // its sampled row clears and refills the slot's token counts

  [[nodiscard]] int32_t end() const { return start + num_tokens; }
};

// What one step does. Owned by the scheduler, which keeps the last few alive
// until they are committed; no allocation in steady state.
struct StepPlan {
  uint64_t step_id = 0;
  std::vector<PlannedSequence> sequences;
  std::vector<RequestId> fills;  // leases whose last tokens it writes, by request
  int32_t num_tokens = 0;
  int32_t num_rows = 0;
  StepKind kind = StepKind::kMixed;
  SamplerVariant sampler = SamplerVariant::kGreedy;

  [[nodiscard]] bool empty() const { return sequences.empty(); }
  // Tells it from the other step in flight; never 0.
  [[nodiscard]] int32_t serial() const { return static_cast<int32_t>(step_id % INT32_MAX) + 1; }
  // Real counts, before the graph table rounds them up to a bucket. Prompt
  // logprobs can ask for more rows than there are sequences.
  [[nodiscard]] StepKey key() const {
    const auto num_seqs = static_cast<int32_t>(sequences.size());
    return {kind, sampler, num_tokens, std::max(num_seqs, num_rows), 0};
  }
};

}  // namespace dlcore

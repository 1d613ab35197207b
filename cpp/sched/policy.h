#pragma once

#include <cstdint>

#include "dlcore/options.h"
#include "sched/sequence.h"

namespace dlcore {

// What is left of a step while it is being planned.
struct StepRoom {
  int32_t tokens = 0;
  int32_t rows = 0;
  int32_t history = 0;        // penalty-history entries
  int32_t block_updates = 0;  // block-table entries
};

// A share of the step for one sequence; num_tokens == 0: nothing fits now.
struct Chunk {
  int32_t num_tokens = 0;
  bool samples = false;
  int32_t num_prompt_rows = 0;
  int32_t num_history = 0;

  [[nodiscard]] int32_t num_rows() const { return num_prompt_rows + (samples ? 1 : 0); }
};

// Sizes chunks: how much of a sequence the rest of a step takes. Pure
// arithmetic; who goes first is the scheduler's business.
// Thread safety: immutable.
class ChunkPolicy {
 public:
  explicit ChunkPolicy(const EngineOptions& options);

  [[nodiscard]] StepRoom WholeStep() const { return whole_; }
  // Shrinks what is left of a step that decodes to what prefill may take of it. Without
  // `hold_back` it may take more than fills the step to mixed_step_tokens.
  void BesideDecodes(StepRoom* room, bool hold_back) const;
  [[nodiscard]] Chunk Fit(const Sequence& sequence, const StepRoom& room) const;

 private:
  [[nodiscard]] bool CanSample(const Sequence& sequence, const StepRoom& room) const;

  StepRoom whole_;
  bool chunked_;
  int32_t long_prefill_;    // 0 = no limit
  int32_t beside_decodes_;  // 0 = no limit
  int32_t mixed_step_;      // 0 = no limit
};

}  // namespace dlcore

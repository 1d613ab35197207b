#pragma once

#include <cstdint>
#include <utility>
#include <vector>

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
// Thread safety: immutable once the first step is planned.
class ChunkPolicy {
 public:
  explicit ChunkPolicy(const EngineOptions& options);

  [[nodiscard]] StepRoom WholeStep() const { return whole_; }
  // Shrinks what is left of a step of `num_decodes` tokens to what prefill may take of it: the
  // bound, and what the step's bucket leaves beyond it, which costs nothing.
  void BesideDecodes(int32_t num_decodes, StepRoom* room) const;
  // The tokens of the graphs that run mixed steps, ascending; none: any number runs as it is.
  void SetTokenBuckets(std::vector<int32_t> buckets) { token_buckets_ = std::move(buckets); }
  [[nodiscard]] Chunk Fit(const Sequence& sequence, const StepRoom& room) const;

 private:
  [[nodiscard]] bool CanSample(const Sequence& sequence, const StepRoom& room) const;

  StepRoom whole_;
  bool chunked_;
  int32_t long_prefill_;    // 0 = no limit
  int32_t beside_decodes_;  // 0 = no limit
  std::vector<int32_t> token_buckets_;
};

}  // namespace dlcore

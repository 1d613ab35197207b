#pragma once

#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "tests/cpp/sched/simulation.h"

namespace dlcore::testing {

inline EngineOptions SmallOptions() {
  EngineOptions o;
  o.limits.max_num_batched_tokens = 16;
  o.limits.max_num_seqs = 4;
  o.limits.max_model_len = 64;
  o.limits.block_size = 4;
  o.limits.vocab_size = 1000;
  o.limits.max_logprobs = 2;
  o.limits.max_bias_entries = 2;
  o.num_kv_blocks = 64;
  o.hash_key[0] = 1;
  return o;
}

inline Request MakeRequest(uint64_t id, int32_t prompt_len, int32_t max_tokens) {
  Request r;
  r.id = RequestId(id);
  for (int32_t i = 0; i < prompt_len; ++i) {
    r.prompt.push_back(static_cast<TokenId>((id * 100 + static_cast<uint64_t>(i)) % 1000));
  }
  r.sampling.temperature = 0;
  r.sampling.max_tokens = max_tokens;
  return r;
}

// A device that samples what the test says.
class Script {
 public:
  explicit Script(const EngineOptions& options) : scheduler(options), vocab_(options.limits) {}

  void Submit(Request request) {
    const Status status = scheduler.Submit(std::move(request));
    ASSERT_TRUE(status.ok()) << status.message();
  }
  // Commits the oldest plan; every row samples `token`.
  void Commit(TokenId token) {
    const std::vector<int32_t> tokens(static_cast<size_t>(vocab_.max_num_seqs), token);
    StepResult result;
    result.sampled_tokens = tokens;
    scheduler.Commit(result);
  }
  std::vector<SequenceOutput> Outputs() {
    OutputBatch batch;
    scheduler.TakeOutputs(&batch);
    return std::move(batch.outputs);
  }
  static std::vector<uint64_t> Ids(const StepPlan& plan) {
    std::vector<uint64_t> ids;
    for (const PlannedSequence& p : plan.sequences) ids.push_back(p.sequence->id().value);
    return ids;
  }

  Scheduler scheduler;

 private:
  StepLimits vocab_;
};

using Ids = std::vector<uint64_t>;

}  // namespace dlcore::testing

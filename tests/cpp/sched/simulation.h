#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "sched/scheduler.h"
#include "step/step_builder.h"
#include "tests/cpp/sched/fake_device.h"

namespace dlcore::testing {

// What a request got, put together from all its outputs.
struct Received {
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  std::vector<float> prompt_logprobs;
  FinishReason reason = FinishReason::kNone;
  TokenId stop_token = -1;
  int32_t num_cached_tokens = 0;
  std::string error;
};

// Scheduler + StepBuilder + FakeDevice, driven like the engine drives them: up
// to `depth` plans in flight, keys rounded up to buckets on demand. Checks the
// laws of a plan at every step.
class Simulation {
 public:
  explicit Simulation(const EngineOptions& options)
      : options_(options),
        scheduler_(options),
        builder_(options.limits),
        device_(options),
        mirror_(StepLayout::MaxInputBytes(options.limits)) {}

  Scheduler& scheduler() { return scheduler_; }
  FakeDevice& device() { return device_; }
  [[nodiscard]] size_t in_flight() const { return results_.size(); }
  const std::map<uint64_t, Received>& received() const { return received_; }

  // Plans and launches one step. False when there was nothing to run.
  bool Launch(bool bucketed = false) {
    const StepPlan& plan = scheduler_.NextPlan();
    if (plan.empty()) return false;
    CheckPlan(plan);
    CheckAgainstPlansInFlight(plan);
    for (const RequestId id : plan.fills) {
      EXPECT_TRUE(filled_.insert(id.value).second) << "two plans fill one lease";
    }
    StepKey key = plan.key();
    key.num_seqs = std::max(key.num_seqs, plan.num_rows);
    if (bucketed) key = RoundUp(key);
    builder_.Fill(plan, key, mirror_);
    results_.push_back(device_.Run(key, mirror_));
    last_plan_ = {plan.kind, plan.sampler, plan.num_tokens,
                  static_cast<int32_t>(plan.sequences.size()), 0};
    return true;
  }

  void Commit() {
    scheduler_.Commit(results_.front().View());
    results_.pop_front();
    uses_.pop_front();
    Collect();
  }

  // Runs until nothing is left, `depth` plans deep.
  void Drain(size_t depth = 2, bool bucketed = false) {
    for (int i = 0; i < 100000 && scheduler_.HasWork(); ++i) {
      const bool launched = results_.size() < depth && Launch(bucketed);
      if (results_.size() >= depth || (!launched && !results_.empty())) Commit();
      Collect();
    }
    ASSERT_FALSE(scheduler_.HasWork()) << scheduler_.DebugString();
    CheckBlocks();
  }

  void Collect() {
    batch_.outputs.clear();
    scheduler_.TakeOutputs(&batch_);
    for (const SequenceOutput& out : batch_.outputs) Append(out);
    CheckBlocks();
  }

  // Requests whose lease a plan was to fill.
  [[nodiscard]] const std::set<uint64_t>& filled() const { return filled_; }
  [[nodiscard]] const StepKey& last_plan() const { return last_plan_; }

  void CheckBlocks() const {
    const SchedulerStats stats = scheduler_.Stats();
    ASSERT_EQ(stats.num_free_blocks + stats.num_cached_blocks + stats.num_referenced_blocks,
              options_.num_kv_blocks);
    if (!scheduler_.HasWork() && stats.num_lent == 0) {
      ASSERT_EQ(stats.num_referenced_blocks, 0);
    }
  }

 private:
  StepKey RoundUp(StepKey key) const {
    const auto up = [](int32_t n, int32_t most) {
      return std::min(most, static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(n))));
    };
    key.num_seqs = up(key.num_seqs, options_.limits.max_num_seqs);
    key.num_tokens = key.kind == StepKind::kDecode && key.num_seqs >= key.num_tokens
                         ? key.num_seqs
                         : up(key.num_tokens, options_.limits.max_num_batched_tokens);
    key.sampler = SamplerVariant::kFull;
    return key;
  }

  void CheckPlan(const StepPlan& plan) const {
    const StepLimits& limits = options_.limits;
    int32_t tokens = 0;
    int32_t rows = 0;
    std::vector<RequestId> fills;
    std::set<int32_t> slots;
    std::set<int32_t> written;
    for (const PlannedSequence& p : plan.sequences) {
      if (p.sequence->lent && p.end() == p.sequence->prompt_len()) {
        fills.push_back(p.sequence->id());
      }
      tokens += p.num_tokens;
      rows += p.num_prompt_rows + (p.samples ? 1 : 0);
      ASSERT_TRUE(slots.insert(p.sequence->slot.value).second) << "one slot, two sequences";
      ASSERT_LT(p.sequence->slot.value, limits.max_num_seqs);
      ASSERT_LE(p.end(), p.sequence->max_total() - 1) << "planned beyond max_tokens";
      for (int32_t b = p.start / limits.block_size; b <= (p.end() - 1) / limits.block_size; ++b) {
        ASSERT_TRUE(written.insert(p.sequence->cache.table[b].value).second) << "two writers";
      }
    }
    ASSERT_EQ(plan.fills, fills);
    ASSERT_EQ(tokens, plan.num_tokens);
    ASSERT_EQ(rows, plan.num_rows);
    ASSERT_LE(tokens, limits.max_num_batched_tokens);
    ASSERT_LE(rows, limits.max_num_seqs);
    const auto seqs = static_cast<int32_t>(plan.sequences.size());
    ASSERT_EQ(plan.kind == StepKind::kDecode, tokens == seqs && rows == seqs);
  }

  // Who reads and who writes which block in one plan.
  struct BlockUse {
    std::map<int32_t, std::set<uint64_t>> readers;
    std::map<int32_t, uint64_t> writers;
  };

  // Blocks that a plan in flight uses have not gone to another sequence: nobody
  // writes what it reads, nobody else holds what it writes.
  void CheckAgainstPlansInFlight(const StepPlan& plan) {
    BlockUse use;
    for (const PlannedSequence& p : plan.sequences) {
      const uint64_t id = p.sequence->id().value;
      for (const BlockId b : p.sequence->cache.table.blocks()) use.readers[b.value].insert(id);
      const int32_t size = options_.limits.block_size;
      for (int32_t i = p.start / size; i <= (p.end() - 1) / size; ++i) {
        use.writers[p.sequence->cache.table[i].value] = id;
      }
    }
    for (const BlockUse& earlier : uses_) {
      for (const auto& [block, writer] : earlier.writers) {
        if (!use.readers.contains(block)) continue;
        ASSERT_EQ(use.readers[block], std::set<uint64_t>{writer}) << "block " << block;
      }
      for (const auto& [block, writer] : use.writers) {
        const auto readers = earlier.readers.find(block);
        if (readers == earlier.readers.end()) continue;
        ASSERT_EQ(readers->second, std::set<uint64_t>{writer}) << "block " << block;
      }
    }
    uses_.push_back(std::move(use));
  }

  void Append(const SequenceOutput& out) {
    Received& r = received_[out.id.value];
    ASSERT_EQ(r.reason, FinishReason::kNone) << "an output after the last one";
    r.tokens.insert(r.tokens.end(), out.tokens.begin(), out.tokens.end());
    for (const TokenLogprobs& l : out.logprobs) r.logprobs.push_back(l.logprob);
    for (const TokenLogprobs& l : out.prompt_logprobs) r.prompt_logprobs.push_back(l.logprob);
    r.reason = out.finish_reason;
    r.stop_token = out.stop_token;
    r.num_cached_tokens = out.num_cached_tokens;
    r.error = out.error;
  }

  EngineOptions options_;
  Scheduler scheduler_;
  StepBuilder builder_;
  FakeDevice device_;
  std::vector<std::byte> mirror_;
  std::deque<FakeResult> results_;  // of plans in flight
  std::deque<BlockUse> uses_;       // of plans in flight
  OutputBatch batch_;
  std::map<uint64_t, Received> received_;
  std::set<uint64_t> filled_;
  StepKey last_plan_;
};

}  // namespace dlcore::testing

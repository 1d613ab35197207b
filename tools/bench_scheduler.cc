// What a step and an admission cost on the CPU, without a device.
#include <cstddef>
#include <random>
#include <vector>

#include <benchmark/benchmark.h>

#include "sched/scheduler.h"
#include "step/step_builder.h"
#include "tools/bench_stats.h"

namespace dlcore {
namespace {

constexpr int32_t kVocab = 150000;

EngineOptions Options(int32_t num_seqs, int32_t max_model_len, int32_t num_blocks) {
  EngineOptions options;
  options.limits.max_num_seqs = num_seqs;
  options.limits.max_model_len = max_model_len;
  options.limits.max_num_batched_tokens = std::max(8192, max_model_len);
  options.limits.block_size = 16;
  options.limits.vocab_size = kVocab;
  options.num_kv_blocks = num_blocks;
  options.eos_token_ids = {kVocab - 1};
  options.hash_key[0] = 1;
  return options;
}

// The engine's loop with a device that answers at once.
class Loop {
 public:
  explicit Loop(const EngineOptions& options)
      : scheduler(options),
        builder_(options.limits),
        mirror_(StepLayout::MaxInputBytes(options.limits)),
        sampled_(static_cast<size_t>(options.limits.max_num_seqs)) {
    for (size_t i = 0; i < sampled_.size(); ++i) sampled_[i] = static_cast<int32_t>(i * 37 % 1000);
  }

  // Plans and fills one step; false when there is none.
  bool Launch() {
    const StepPlan& plan = scheduler.NextPlan();
    if (plan.empty()) return false;
    builder_.Fill(plan, plan.key(), mirror_);
    return true;
  }

  void Commit() {
    StepResult result;
    result.sampled_tokens = sampled_;
    scheduler.Commit(result);
    outputs_.outputs.clear();
    scheduler.TakeOutputs(&outputs_);
  }

  void Drain() {
    while (scheduler.HasWork() && Launch()) Commit();
  }

  Scheduler scheduler;

 private:
  StepBuilder builder_;
  std::vector<std::byte> mirror_;
  std::vector<int32_t> sampled_;
  OutputBatch outputs_;
};

std::vector<TokenId> RandomPrompt(int32_t length, std::mt19937* random) {
  std::vector<TokenId> prompt(static_cast<size_t>(length));
  for (TokenId& token : prompt) token = static_cast<TokenId>((*random)() % kVocab);
  return prompt;
}

Request MakeRequest(uint64_t id, std::vector<TokenId> prompt, int32_t max_tokens) {
  Request request;
  request.id = RequestId(id);
  request.prompt = std::move(prompt);
  request.sampling.max_tokens = max_tokens;
  request.sampling.seed = id;
  return request;
}

// One step of `range(0)` decoding sequences, one plan ahead as the engine runs
// it: plan + fill + commit + outputs. Contexts grow by a token each step.
void BM_Step(benchmark::State& state) {
  const auto num_seqs = static_cast<int32_t>(state.range(0));
  Loop loop(Options(num_seqs, 4096, num_seqs * 160));
  std::mt19937 random(1);
  for (int32_t i = 0; i < num_seqs; ++i) {
    const Request request = MakeRequest(static_cast<uint64_t>(i), RandomPrompt(100, &random), 3900);
    if (!loop.scheduler.Submit(request).ok()) state.SkipWithError("submit failed");
  }
  while (loop.scheduler.Stats().num_waiting > 0) {
    loop.Launch();
    loop.Commit();
  }
  loop.Launch();
  LapTimer timer(&state);
  for (auto _ : state) {
    timer.Start();
    loop.Launch();
    loop.Commit();
    timer.Stop();
  }
  timer.Report();
}
BENCHMARK(BM_Step)->Arg(256)->Arg(1024)->Iterations(2000)->UseManualTime()->Unit(
    benchmark::kMicrosecond);

// From Submit to the first plan of a prompt of `range(0)` tokens that the prefix
// cache holds, in a cache of a million blocks: validation and hashing included.
void BM_Admit(benchmark::State& state) {
  const auto length = static_cast<int32_t>(state.range(0));
  constexpr int32_t kNumBlocks = 1 << 20;
  Loop loop(Options(64, 32768 + 64, kNumBlocks));
  std::mt19937 random(2);
  std::vector<std::vector<TokenId>> prompts;
  const int32_t count = std::min(4096, kNumBlocks / (length / 16 + 1));
  uint64_t id = 0;
  for (int32_t i = 0; i < count; ++i) {
    prompts.push_back(RandomPrompt(length, &random));
    if (!loop.scheduler.Submit(MakeRequest(id++, prompts.back(), 1)).ok()) {
      state.SkipWithError("submit failed");
    }
    loop.Drain();
  }
  LapTimer timer(&state);
  for (auto _ : state) {
    Request request = MakeRequest(id++, prompts[random() % prompts.size()], 1);
    timer.Start();
    const Status status = loop.scheduler.Submit(std::move(request));
    const bool planned = !loop.scheduler.NextPlan().empty();
    timer.Stop();
    if (!status.ok() || !planned) state.SkipWithError("not admitted");
    loop.Commit();
  }
  timer.Report();
}
BENCHMARK(BM_Admit)->Arg(16)->Arg(32768)->UseManualTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace dlcore

BENCHMARK_MAIN();

// Steps per second of the whole loop - inbox, scheduler, arena, copies, commit,
// output queue - around a model that costs nothing. A reader thread drains the
// outputs as a front end would.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "benchmark/benchmark.h"
#include "device/device.h"
#include "dlcore/engine.h"
#include "graph/null_executable.h"

namespace dlcore {
namespace {

constexpr int32_t kMaxModelLen = 4096;
constexpr int32_t kPromptLen = 32;
constexpr uint64_t kStepsPerIteration = 200;

EngineOptions OptionsFor(int32_t num_seqs) {
  EngineOptions options;
  options.limits.max_num_batched_tokens = 8192;
  options.limits.max_num_seqs = num_seqs;
  options.limits.max_model_len = kMaxModelLen;
  options.limits.vocab_size = 151936;
  options.num_kv_blocks = num_seqs * options.limits.max_blocks_per_seq();
  options.cache_groups = {{CacheKind::kPaged, 28, 65536, 0}};
  return options;
}

// Keeps `num_seqs` sequences running and reads what they give.
class Load {
 public:
  explicit Load(int32_t num_seqs)
      : options_(OptionsFor(num_seqs)),
        input_(StepLayout::MaxInputBytes(options_.limits)),
        output_(StepLayout::MaxOutputBytes(options_.limits)) {
    const Engine::Arenas arenas{reinterpret_cast<uint64_t>(input_.data()),
                                reinterpret_cast<uint64_t>(output_.data())};
    Check(Engine::Create(options_, NewCpuDevice(), arenas, &engine_));
    Check(engine_->SetExactExecutable(
        NewNullExecutable(options_.limits, arenas.input, arenas.output, 0)));
    Check(engine_->Start());
    for (int32_t i = 0; i < num_seqs; ++i) Submit();
    reader_ = std::thread([this] { Read(); });
  }

  ~Load() {
    stop_ = true;
    reader_.join();
  }
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;

  [[nodiscard]] EngineStats Stats() const { return engine_->Stats(); }

 private:
  static void Check(const Status& status) {
    if (!status.ok()) std::abort();
  }

  void Submit() {
    Request request;
    request.id = RequestId(next_id_++);
    // Prompts differ, so that no prefix is shared.
    request.prompt.assign(kPromptLen, static_cast<TokenId>(request.id.value % 100000));
    request.sampling.temperature = 0;
    request.sampling.max_tokens = kMaxModelLen - kPromptLen;
    Check(engine_->Submit(std::move(request)));
  }

  void Read() {
    OutputBatch batch;
    while (!stop_) {
      if (!engine_->Poll(0.1, &batch)) continue;
      for (const SequenceOutput& row : batch.outputs) {
        if (row.finish_reason != FinishReason::kNone) Submit();
      }
    }
  }

  EngineOptions options_;
  std::vector<std::byte> input_;
  std::vector<std::byte> output_;
  std::unique_ptr<Engine> engine_;
  uint64_t next_id_ = 0;
  std::atomic<bool> stop_{false};
  std::thread reader_;
};

void BM_Engine(benchmark::State& state) {
  Load load(static_cast<int32_t>(state.range(0)));
  while (load.Stats().num_running < state.range(0)) std::this_thread::yield();
  const EngineStats before = load.Stats();
  for (auto _ : state) {
    const uint64_t target = load.Stats().num_steps + kStepsPerIteration;
    while (load.Stats().num_steps < target) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
  const EngineStats after = load.Stats();
  const auto steps = static_cast<double>(after.num_steps - before.num_steps);
  const auto tokens = static_cast<double>(after.num_generated_tokens - before.num_generated_tokens);
  state.counters["steps/s"] = benchmark::Counter(steps, benchmark::Counter::kIsRate);
  state.counters["tokens/s"] = benchmark::Counter(tokens, benchmark::Counter::kIsRate);
  state.counters["step_us"] = (after.step_cpu_seconds - before.step_cpu_seconds) * 1e6 / steps;
}
BENCHMARK(BM_Engine)->Arg(1)->Arg(256)->Arg(1024)->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace dlcore

BENCHMARK_MAIN();

#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "dlcore/engine.h"
#include "gtest/gtest.h"
#include "tests/cpp/engine/fake_device.h"

namespace dlcore::testing {

inline EngineOptions SmallOptions() {
  EngineOptions options;
  options.limits = {64, 16, 256, 8, 1000, 4, 16};
  options.num_kv_blocks = 512;
  options.cache_groups = {{CacheKind::kPaged, 1, 1024, 0}};
  options.enable_prefix_caching = false;
  options.watchdog_timeout_s = 60;
  return options;
}

// An engine around the null model, on the CPU or on a fake GPU, and everything
// it was seen to produce.
class EngineHarness {
 public:
  explicit EngineHarness(const EngineOptions& options = SmallOptions(), FakeGpu* gpu = nullptr)
      : gpu_(gpu),
        input_(StepLayout::MaxInputBytes(options.limits)),
        output_(StepLayout::MaxOutputBytes(options.limits)) {
    const Engine::Arenas arenas{reinterpret_cast<uint64_t>(input_.data()),
                                reinterpret_cast<uint64_t>(output_.data())};
    auto device = gpu == nullptr ? NewCpuDevice() : gpu->NewDevice();
    auto model = NewNullExecutable(options.limits, arenas.input, arenas.output, 0);
    if (gpu != nullptr) model = gpu->NewExecutable(std::move(model));
    EXPECT_TRUE(Engine::Create(options, std::move(device), arenas, &engine_).ok());
    EXPECT_TRUE(engine_->SetExactExecutable(std::move(model)).ok());
  }

  ~EngineHarness() {
    engine_->Stop();
    if (gpu_ != nullptr) gpu_->Abort();  // a stalled device must not write to freed arenas
  }
  EngineHarness(const EngineHarness&) = delete;
  EngineHarness& operator=(const EngineHarness&) = delete;

  Engine& engine() { return *engine_; }

  static Request MakeRequest(uint64_t id, int32_t max_tokens, int32_t prompt_len = 3) {
    Request request;
    request.id = RequestId(id);
    request.prompt.assign(static_cast<size_t>(prompt_len), 1);
    request.sampling.temperature = 0;
    request.sampling.max_tokens = max_tokens;
    return request;
  }

  Status Submit(uint64_t id, int32_t max_tokens, int32_t prompt_len = 3) {
    return engine_->Submit(MakeRequest(id, max_tokens, prompt_len));
  }

  // Polls until `num_finished` requests have ended, or 30 s.
  bool PollUntilFinished(size_t num_finished) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (finished_.size() < num_finished && std::chrono::steady_clock::now() < deadline) {
      PollOnce(0.05);
    }
    return finished_.size() >= num_finished;
  }

  bool PollOnce(double timeout_s) {
    OutputBatch batch;
    if (!engine_->Poll(timeout_s, &batch)) return false;
    for (SequenceOutput& row : batch.outputs) {
      EXPECT_FALSE(finished_.contains(row.id)) << "a row after the last of " << row.id.value;
      auto& tokens = tokens_[row.id];
      tokens.insert(tokens.end(), row.tokens.begin(), row.tokens.end());
      ++num_rows_;
      if (row.finish_reason != FinishReason::kNone) finished_[row.id] = std::move(row);
    }
    return true;
  }

  [[nodiscard]] const std::vector<TokenId>& tokens(uint64_t id) { return tokens_[RequestId(id)]; }
  [[nodiscard]] const SequenceOutput& last(uint64_t id) { return finished_[RequestId(id)]; }
  [[nodiscard]] size_t num_finished() const { return finished_.size(); }
  [[nodiscard]] size_t num_rows() const { return num_rows_; }

 private:
  FakeGpu* gpu_;
  std::vector<std::byte> input_;
  std::vector<std::byte> output_;
  std::map<RequestId, std::vector<TokenId>> tokens_;
  std::map<RequestId, SequenceOutput> finished_;
  size_t num_rows_ = 0;
  std::unique_ptr<Engine> engine_;
};

// What the null model says at a position (see null_executable.cc).
inline TokenId NullToken(int32_t position, int32_t vocab_size) {
  return static_cast<TokenId>(static_cast<uint32_t>(position) * 2654435761u %
                              static_cast<uint32_t>(vocab_size));
}

template <class Condition>
bool WaitFor(Condition condition, double seconds = 10) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace dlcore::testing

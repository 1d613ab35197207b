#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dlcore/engine.h"
#include "gtest/gtest.h"
#include "tests/cpp/engine/engine_harness.h"
#include "tests/cpp/engine/fake_device.h"
#include "tests/cpp/sched/fake_device.h"

// Prefill and decode engines around a model whose answers depend on every byte of its KV.
namespace dlcore::testing {

// Closed: steps (or layers) wait before they begin.
class StepGate {
 public:
  // The first `count` pass; the next ones wait for Open.
  void CloseAfter(int count) {
    const std::lock_guard lock(mutex_);
    left_ = count;
    changed_.notify_all();
  }
  void Open() {
    const std::lock_guard lock(mutex_);
    left_.reset();
    changed_.notify_all();
  }
  void Pass() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !left_ || *left_ > 0; });
    if (left_) --*left_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<int> left_;  // nothing = open
};

// The toy model of the scheduler's tests as something an engine runs.
class ToyExecutable final : public Executable {
 public:
  struct Hooks {
    StepGate* steps;
    StepGate* layers;
    // Told of the layers of a step with prompts: {its serial, layers done}.
    std::function<void(int32_t, int32_t)> report;
  };

  ToyExecutable(const StepLimits& limits, FakeDevice* model, std::span<const std::byte> input,
                std::byte* output, Hooks hooks)
      : limits_(limits), model_(model), input_(input), output_(output), hooks_(std::move(hooks)) {}

  Status Launch(const StepKey& key, Stream& /*stream*/) override {
    hooks_.steps->Pass();
    hooks_.layers->Pass();
    const FakeResult result = model_->Run(key, input_);
    Report(key, 1);
    for (int32_t layer = 1; layer < model_->num_layers(); ++layer) {
      hooks_.layers->Pass();
      model_->WriteLayer(layer);
      Report(key, layer + 1);
    }
    hooks_.layers->Pass();  // sampling
    const StepLayout layout(limits_, key);
    Write(layout, "sampled_tokens", result.tokens);
    if (key.sampler != SamplerVariant::kFull) return {};
    Write(layout, "sampled_logprobs", result.logprobs);
    Write(layout, "sampled_ranks", result.ranks);
    Write(layout, "top_ids", result.top_ids);
    Write(layout, "top_logprobs", result.top_logprobs);
    return {};
  }

 private:
  void Report(const StepKey& key, int32_t layers_done) {
    if (key.kind != StepKind::kMixed) return;
    const auto* header = reinterpret_cast<const int32_t*>(input_.data());
    hooks_.report(header[static_cast<size_t>(StepHeader::kStepSerial)], layers_done);
  }
  template <class T>
  void Write(const StepLayout& layout, std::string_view field, const std::vector<T>& values) {
    std::ranges::copy(values, reinterpret_cast<T*>(output_ + layout.OutputOffset(field)));
  }

  const StepLimits limits_;
  FakeDevice* model_;
  std::span<const std::byte> input_;
  std::byte* output_;
  const Hooks hooks_;
};

inline constexpr int32_t kVocab = 60;

enum class PdRole { kHybrid, kPrefill, kDecode };

// What a request got from one engine.
struct PdOutput {
  std::vector<TokenId> tokens;
  FinishReason reason = FinishReason::kNone;
  std::string error;
  std::optional<KvLease> lease;
};

class PdNode {
 public:
  struct Settings {
    PdRole role = PdRole::kPrefill;
    std::string transport = "tcp";
    bool pipelined = false;  // on a fake GPU, two steps in flight
    int32_t block_size = 4;
    int32_t num_blocks = 128;
    int32_t num_layers = 3;
    std::chrono::milliseconds lease_ttl{5000};
  };

  static EngineOptions Options(const Settings& settings) {
    EngineOptions o;
    o.limits.block_size = settings.block_size;
    o.limits.max_model_len = 96;
    o.limits.max_num_seqs = 8;
    o.limits.max_num_batched_tokens = 16;
    o.limits.vocab_size = kVocab;
    o.limits.max_logprobs = 1;
    o.limits.max_bias_entries = 4;
    o.num_kv_blocks = settings.num_blocks;
    o.eos_token_ids = {1};
    o.watchdog_timeout_s = 60;
    return o;
  }

  explicit PdNode(const Settings& settings)
      : options_(Options(settings)),
        model_(options_),
        input_(StepLayout::MaxInputBytes(options_.limits)),
        output_(StepLayout::MaxOutputBytes(options_.limits)) {
    model_.SetLayers(settings.num_layers);
    const Engine::Arenas arenas{reinterpret_cast<uint64_t>(input_.data()),
                                reinterpret_cast<uint64_t>(output_.data()),
                                reinterpret_cast<uint64_t>(&layer_word_)};
    std::unique_ptr<Executable> model = std::make_unique<ToyExecutable>(
        options_.limits, &model_, input_, output_.data(),
        ToyExecutable::Hooks{&gate_, &layer_gate_, Reporter(settings.pipelined)});
    if (settings.pipelined) {
      gpu_ = std::make_unique<FakeGpu>();
      model = gpu_->NewExecutable(std::move(model));
    }
    auto device = gpu_ ? gpu_->NewDevice() : NewCpuDevice();
    EXPECT_TRUE(Engine::Create(options_, std::move(device), arenas, &engine_).ok());
    EXPECT_TRUE(engine_->SetExactExecutable(std::move(model)).ok());
    if (settings.role != PdRole::kHybrid) OpenKvTransfer(settings);
    EXPECT_TRUE(engine_->Start().ok());
  }
  ~PdNode() { Stop(); }
  PdNode(const PdNode&) = delete;
  PdNode& operator=(const PdNode&) = delete;

  Engine& engine() { return *engine_; }
  StepGate& gate() { return gate_; }
  StepGate& layer_gate() { return layer_gate_; }
  [[nodiscard]] const EngineOptions& options() const { return options_; }
  void Stop() {
    gate_.Open();
    layer_gate_.Open();
    engine_->Stop();
    if (gpu_ != nullptr) gpu_->Abort();
  }

  // Takes what is there; true when there was something.
  bool Poll(double timeout_s = 0) {
    OutputBatch batch;
    if (!engine_->Poll(timeout_s, &batch)) return false;
    for (SequenceOutput& row : batch.outputs) {
      PdOutput& out = outputs_[row.id.value];
      EXPECT_EQ(out.reason, FinishReason::kNone) << "a row after the last of " << row.id.value;
      out.tokens.insert(out.tokens.end(), row.tokens.begin(), row.tokens.end());
      out.reason = row.finish_reason;
      out.error = row.error;
      if (row.kv_lease) out.lease = row.kv_lease;
    }
    return true;
  }
  PdOutput& output(uint64_t id) { return outputs_[id]; }
  [[nodiscard]] bool finished(uint64_t id) { return outputs_[id].reason != FinishReason::kNone; }
  bool PollUntil(const std::function<bool()>& condition, double seconds = 20) {
    return WaitFor([&] { return Poll(0.001), condition(); }, seconds);
  }
  bool AllBlocksReturn(double seconds = 20) {
    return WaitFor([this] { return engine_->Stats().num_referenced_blocks == 0; }, seconds);
  }

  // Where `node` may read what `request` left under `lease`.
  static KvSource Source(PdNode& node, const KvLease& lease, bool recompute = true) {
    KvSource source;
    source.sources = {{node.engine().KvEndpoints().front(), lease.lease}};
    source.num_tokens = lease.num_tokens;
    source.recompute_on_failure = recompute;
    return source;
  }

 private:
  // As a model on a GPU reports its layers, or one on the engine thread.
  std::function<void(int32_t, int32_t)> Reporter(bool pipelined) {
    if (pipelined) {
      return [this](int32_t serial, int32_t layers_done) {
        layer_word_.store(LayerWord::Make(serial, layers_done), std::memory_order_release);
      };
    }
    return [this](int32_t, int32_t layers_done) {
      EXPECT_TRUE(engine_->ReportLayers(layers_done).ok());
    };
  }

  void OpenKvTransfer(const Settings& settings) {
    KvTransferOptions kv;
    kv.layout.groups = {{.block_size = settings.block_size,
                         .num_blocks = settings.num_blocks,
                         .num_planes = 1,
                         .num_kv_heads = 1,
                         .bytes_per_head = sizeof(uint64_t)}};
    for (int32_t i = 0; i < model_.num_layers(); ++i) {
      kv.layout.layers.push_back({0, reinterpret_cast<uint64_t>(model_.layer(i).data())});
    }
    kv.serves = settings.role == PdRole::kPrefill;
    kv.transports = {settings.transport};
    kv.key = "a deployment key of many bytes";
    kv.lease_ttl = settings.lease_ttl;
    const Status status = engine_->OpenKvTransfer(kv);
    EXPECT_TRUE(status.ok()) << status.message();
  }

  const EngineOptions options_;
  FakeDevice model_;
  StepGate gate_;
  StepGate layer_gate_;
  std::atomic<uint64_t> layer_word_{0};
  std::vector<std::byte> input_;
  std::vector<std::byte> output_;
  std::map<uint64_t, PdOutput> outputs_;
  std::unique_ptr<FakeGpu> gpu_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace dlcore::testing

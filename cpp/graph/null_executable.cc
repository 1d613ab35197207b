#include "graph/null_executable.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <string_view>
#include <thread>

#include "dlcore/types.h"

namespace dlcore {
namespace {

// Knuth's multiplicative hash: neighbours in position are far apart in the vocabulary.
TokenId TokenAt(int32_t position, int32_t vocab_size) {
  return static_cast<TokenId>(static_cast<uint32_t>(position) * 2654435761u %
                              static_cast<uint32_t>(vocab_size));
}

TokenId NextAllowed(TokenId token, const uint32_t* mask, int32_t vocab_size) {
  for (int32_t tried = 0; tried < vocab_size; ++tried) {
    const TokenId candidate = (token + tried) % vocab_size;
    if ((mask[candidate / 32] >> (candidate % 32) & 1u) != 0) return candidate;
  }
  return token;
}

void Delay(int64_t delay_us) {
  if (delay_us <= 0) return;
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + std::chrono::microseconds(delay_us);
  // A sleep may oversleep by some 60 us; spin through the last part.
  constexpr auto kSpin = std::chrono::microseconds(80);
  if (std::chrono::microseconds(delay_us) > kSpin) std::this_thread::sleep_until(end - kSpin);
  while (Clock::now() < end) {
  }
}

class NullExecutable final : public Executable {
 public:
  NullExecutable(const StepLimits& limits, uint64_t input_arena, uint64_t output_arena,
                 int64_t step_delay_us)
      : limits_(limits),
        input_(reinterpret_cast<const std::byte*>(input_arena)),
        output_(reinterpret_cast<std::byte*>(output_arena)),
        step_delay_us_(step_delay_us) {}

  Status Launch(const StepKey& key, Stream& /*stream*/) override {
    if (!layout_ || key != key_) {
      layout_.emplace(limits_, key);
      key_ = key;
    }
    SampleRows();
    if (key.sampler == SamplerVariant::kFull) WriteLogprobs();
    Delay(step_delay_us_);
    return {};
  }

 private:
  template <class T = int32_t>
  const T* Input(std::string_view name) const {
    return reinterpret_cast<const T*>(input_ + layout_->InputOffset(name));
  }
  template <class T = int32_t>
  T* Output(std::string_view name) const {
    return reinterpret_cast<T*>(output_ + layout_->OutputOffset(name));
  }
  [[nodiscard]] int32_t Header(StepHeader entry) const {
    return Input("header")[static_cast<int32_t>(entry)];
  }

  // The mask of each row, or null. REQUIRES: key_.sampler == kFull
  [[nodiscard]] const uint32_t* MaskOf(int32_t row) const {
    const int32_t mask_row = Input("mask_rows")[row];
    if (mask_row < 0) return nullptr;
    const auto* arena = reinterpret_cast<const uint32_t*>(input_);
    return arena + Header(StepHeader::kMasksOffset) +
           static_cast<int64_t>(mask_row) * limits_.mask_words();
  }

  void SampleRows() {
    const int32_t num_rows = Header(StepHeader::kNumRows);
    const int32_t* positions = Input("positions");
    const int32_t* logits_indices = Input("logits_indices");
    const int32_t* target_tokens = Input("target_tokens");
    int32_t* sampled = Output("sampled_tokens");
    std::fill(sampled + num_rows, sampled + key_.num_seqs, -1);
    for (int32_t row = 0; row < num_rows; ++row) {
      if (target_tokens[row] >= 0) {
        sampled[row] = -1;
        continue;
      }
      sampled[row] = TokenAt(positions[logits_indices[row]] + 1, limits_.vocab_size);
      if (key_.sampler != SamplerVariant::kFull) continue;
      const uint32_t* mask = MaskOf(row);
      if (mask != nullptr) sampled[row] = NextAllowed(sampled[row], mask, limits_.vocab_size);
    }
  }

  void WriteLogprobs() {
    const float uniform = -std::log(static_cast<float>(limits_.vocab_size));
    const int64_t num_rows = Header(StepHeader::kNumRows);
    const int64_t num_tops = num_rows * limits_.max_logprobs;
    std::fill_n(Output<float>("sampled_logprobs"), num_rows, uniform);
    std::fill_n(Output("sampled_ranks"), num_rows, 1);
    std::fill_n(Output<float>("top_logprobs"), num_tops, uniform);
    int32_t* top_ids = Output("top_ids");
    for (int64_t i = 0; i < num_tops; ++i) {
      top_ids[i] = static_cast<int32_t>(i % limits_.max_logprobs) % limits_.vocab_size;
    }
  }

  StepLimits limits_;
  const std::byte* input_;
  std::byte* output_;
  int64_t step_delay_us_;
  StepKey key_;
  std::optional<StepLayout> layout_;
};

}  // namespace

std::unique_ptr<Executable> NewNullExecutable(const StepLimits& limits, uint64_t input_arena,
                                              uint64_t output_arena, int64_t step_delay_us) {
  return std::make_unique<NullExecutable>(limits, input_arena, output_arena, step_delay_us);
}

}  // namespace dlcore

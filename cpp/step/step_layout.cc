#include "dlcore/step_layout.h"

#include <algorithm>

#include "base/check.h"
#include "step/step_fields.h"

namespace dlcore {
namespace {

size_t FindOffset(const std::vector<StepField>& fields, std::string_view name) {
  const auto it = std::ranges::find(fields, name, &StepField::name);
  DLCORE_CHECK(it != fields.end()) << "no step field " << name;
  return it->offset;
}

StepKey LargestKey(const StepLimits& limits) {
  return {StepKind::kMixed, SamplerVariant::kFull, limits.max_num_batched_tokens,
          limits.max_num_seqs, 0};
}

}  // namespace

StepLayout::StepLayout(const StepLimits& limits, const StepKey& key) {
  const InputOffsets offsets = OffsetsOf(key);
  for (size_t i = 0; i < kNumInputFields; ++i) {
    const InputFieldSpec& field = kInputFields[i];
    if (field.since > key.sampler) continue;
    inputs_.push_back({field.name, field.type, offsets.at[i], Count(field.extent, key), 0});
  }
  tail_offset_ = offsets.tail;

  const auto add = [&](std::string_view name, FieldType type, int64_t cols) {
    outputs_.push_back({name, type, output_bytes_, key.num_seqs, cols});
    const auto count = static_cast<size_t>(key.num_seqs * std::max<int64_t>(cols, 1));
    output_bytes_ = AlignStep(output_bytes_ + SizeOf(type) * count);
  };
  add("sampled_tokens", FieldType::kInt32, 0);
  if (key.sampler < SamplerVariant::kFull) return;
  add("sampled_logprobs", FieldType::kFloat32, 0);
  add("sampled_ranks", FieldType::kInt32, 0);
  add("top_ids", FieldType::kInt32, limits.max_logprobs);
  add("top_logprobs", FieldType::kFloat32, limits.max_logprobs);
}

size_t StepLayout::InputOffset(std::string_view name) const { return FindOffset(inputs_, name); }

size_t StepLayout::OutputOffset(std::string_view name) const { return FindOffset(outputs_, name); }

size_t StepLayout::MaxInputBytes(const StepLimits& limits) {
  const auto seqs = static_cast<size_t>(limits.max_num_seqs);
  const size_t updates = 8 * static_cast<size_t>(limits.max_block_updates());
  const size_t history = 8 * static_cast<size_t>(limits.max_history_entries());
  const size_t bias = 12 * seqs * static_cast<size_t>(limits.max_bias_entries);
  const size_t masks = 4 * seqs * static_cast<size_t>(limits.mask_words());
  return OffsetsOf(LargestKey(limits)).tail + AlignStep(updates) + AlignStep(history) +
         AlignStep(bias) + AlignStep(masks);
}

size_t StepLayout::MaxOutputBytes(const StepLimits& limits) {
  return StepLayout(limits, LargestKey(limits)).output_bytes();
}

}  // namespace dlcore

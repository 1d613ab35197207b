#include "engine/output_view.h"

namespace dlcore {
namespace {

template <class T>
std::span<const T> Slice(std::span<const std::byte> arena, size_t offset, size_t count) {
  return {reinterpret_cast<const T*>(arena.data() + offset), count};
}

}  // namespace

void OutputView::Prepare(const StepKey& key) {
  if (bytes_ != 0 && key == key_) return;
  const StepLayout layout(limits_, key);
  key_ = key;
  bytes_ = layout.output_bytes();
  sampled_tokens_ = layout.OutputOffset("sampled_tokens");
  if (key.sampler != SamplerVariant::kFull) return;
  sampled_logprobs_ = layout.OutputOffset("sampled_logprobs");
  sampled_ranks_ = layout.OutputOffset("sampled_ranks");
  top_ids_ = layout.OutputOffset("top_ids");
  top_logprobs_ = layout.OutputOffset("top_logprobs");
}

size_t OutputView::Bytes(const StepKey& key) {
  Prepare(key);
  return bytes_;
}

StepResult OutputView::Read(const StepKey& key, std::span<const std::byte> arena,
                            int32_t num_rows) {
  Prepare(key);
  const auto rows = static_cast<size_t>(num_rows);
  StepResult result;
  result.sampled_tokens = Slice<int32_t>(arena, sampled_tokens_, rows);
  if (key.sampler != SamplerVariant::kFull) return result;
  const size_t tops = rows * static_cast<size_t>(limits_.max_logprobs);
  result.sampled_logprobs = Slice<float>(arena, sampled_logprobs_, rows);
  result.sampled_ranks = Slice<int32_t>(arena, sampled_ranks_, rows);
  result.top_ids = Slice<int32_t>(arena, top_ids_, tops);
  result.top_logprobs = Slice<float>(arena, top_logprobs_, tops);
  return result;
}

}  // namespace dlcore

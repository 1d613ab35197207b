#pragma once

#include <cstddef>
#include <span>

#include "dlcore/step_layout.h"
#include "sched/step_plan.h"
#include "step/step_fields.h"

namespace dlcore {

// Turns a plan into the bytes of the input arena. Writes only what the step
// uses: block tables live on the device, and a step carries their changes
// (new blocks of a sequence), so its cost does not grow with context length.
// Thread safety: engine thread only. No allocation in steady state.
class StepBuilder {
 public:
  explicit StepBuilder(const StepLimits& limits);

  // Fills `mirror` for `plan` run as `key` (the bucket chosen by the graph
  // table: key counts >= the plan's). Returns how many bytes from the start are
  // in use: what the one host-to-device copy must carry.
  // REQUIRES: mirror.size() >= StepLayout::MaxInputBytes(limits)
  size_t Fill(const StepPlan& plan, const StepKey& key, std::span<std::byte> mirror);

 private:
  class Tail;

  void FillSequences(const StepPlan& plan, const StepKey& key);
  void FillTokens(const PlannedSequence& planned, int32_t index, int32_t first_token);
  void FillRows(const PlannedSequence& planned, int32_t first_token, int32_t first_row,
                SamplerVariant variant);
  void FillSampling(const Sequence& sequence, int32_t row, int32_t position,
                    SamplerVariant variant);
  void Pad(const StepPlan& plan, const StepKey& key);
  void PadRows(int32_t first, int32_t end, SamplerVariant variant);
  size_t FillTail(const StepPlan& plan, const StepKey& key, size_t tail);
  void AddBlockUpdates(const StepPlan& plan, Tail* tail);
  void AddHistory(const StepPlan& plan, Tail* tail);
  void AddBias(const StepPlan& plan, Tail* tail);
  void AddMasks(const StepPlan& plan, Tail* tail);

  [[nodiscard]] int32_t* Ints(InputField field) const {
    return reinterpret_cast<int32_t*>(arena_ + offsets_.at[static_cast<size_t>(field)]);
  }
  [[nodiscard]] float* Floats(InputField field) const {
    return reinterpret_cast<float*>(arena_ + offsets_.at[static_cast<size_t>(field)]);
  }
  [[nodiscard]] int64_t* Longs(InputField field) const {
    return reinterpret_cast<int64_t*>(arena_ + offsets_.at[static_cast<size_t>(field)]);
  }
  int32_t& Header(StepHeader entry) const {
    return Ints(InputField::kHeader)[static_cast<size_t>(entry)];
  }

  StepLimits limits_;
  size_t arena_bytes_;
  std::byte* arena_ = nullptr;  // of the step being filled
  InputOffsets offsets_;        // of the step being filled
};

}  // namespace dlcore

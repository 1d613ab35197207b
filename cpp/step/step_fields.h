#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "dlcore/step_layout.h"

namespace dlcore {

// The fields of the input arena, in their order; the one table that StepLayout
// shows and StepBuilder fills.
enum class InputField : uint8_t {
  kHeader,
  kTokenIds,
  kPositions,
  kSlotMapping,
  kTokenSeq,
  kQueryStartLoc,
  kSeqLens,
  kSeqSlots,
  kLogitsIndices,
  kRowStartLoc,
  kRowSlots,
  kTargetTokens,
  kTemperature,
  kTopP,
  kMinP,
  kTopK,
  kSeeds,
  kSamplePositions,
  kPresencePenalty,
  kFrequencyPenalty,
  kRepetitionPenalty,
  kMaskRows,
  kCountsReset,
};
inline constexpr size_t kNumInputFields = 23;

enum class FieldExtent : uint8_t { kHeader, kTokens, kSeqs, kSeqsPlusOne };

struct InputFieldSpec {
  std::string_view name;
  FieldType type;
  FieldExtent extent;
  SamplerVariant since;  // the least variant that has it
};

inline constexpr std::array<InputFieldSpec, kNumInputFields> kInputFields = {{
    {"header", FieldType::kInt32, FieldExtent::kHeader, SamplerVariant::kGreedy},
    {"token_ids", FieldType::kInt32, FieldExtent::kTokens, SamplerVariant::kGreedy},
    {"positions", FieldType::kInt32, FieldExtent::kTokens, SamplerVariant::kGreedy},
    {"slot_mapping", FieldType::kInt32, FieldExtent::kTokens, SamplerVariant::kGreedy},
    {"token_seq", FieldType::kInt32, FieldExtent::kTokens, SamplerVariant::kGreedy},
    {"query_start_loc", FieldType::kInt32, FieldExtent::kSeqsPlusOne, SamplerVariant::kGreedy},
    {"seq_lens", FieldType::kInt32, FieldExtent::kSeqs, SamplerVariant::kGreedy},
    {"seq_slots", FieldType::kInt32, FieldExtent::kSeqs, SamplerVariant::kGreedy},
    {"logits_indices", FieldType::kInt32, FieldExtent::kSeqs, SamplerVariant::kGreedy},
    {"row_start_loc", FieldType::kInt32, FieldExtent::kSeqsPlusOne, SamplerVariant::kGreedy},
    {"row_slots", FieldType::kInt32, FieldExtent::kSeqs, SamplerVariant::kGreedy},
    {"target_tokens", FieldType::kInt32, FieldExtent::kSeqs, SamplerVariant::kGreedy},
    {"temperature", FieldType::kFloat32, FieldExtent::kSeqs, SamplerVariant::kRandom},
    {"top_p", FieldType::kFloat32, FieldExtent::kSeqs, SamplerVariant::kRandom},
    {"min_p", FieldType::kFloat32, FieldExtent::kSeqs, SamplerVariant::kRandom},
    {"top_k", FieldType::kInt32, FieldExtent::kSeqs, SamplerVariant::kRandom},
    {"seeds", FieldType::kInt64, FieldExtent::kSeqs, SamplerVariant::kRandom},
    {"sample_positions", FieldType::kInt32, FieldExtent::kSeqs, SamplerVariant::kRandom},
    {"presence_penalty", FieldType::kFloat32, FieldExtent::kSeqs, SamplerVariant::kFull},
    {"frequency_penalty", FieldType::kFloat32, FieldExtent::kSeqs, SamplerVariant::kFull},
    {"repetition_penalty", FieldType::kFloat32, FieldExtent::kSeqs, SamplerVariant::kFull},
    {"mask_rows", FieldType::kInt32, FieldExtent::kSeqs, SamplerVariant::kFull},
    {"counts_reset", FieldType::kInt32, FieldExtent::kSeqs, SamplerVariant::kFull},
}};

constexpr size_t AlignStep(size_t bytes) { return (bytes + 15) / 16 * 16; }

constexpr size_t SizeOf(FieldType type) { return type == FieldType::kInt64 ? 8 : 4; }

constexpr int64_t Count(FieldExtent extent, const StepKey& key) {
  switch (extent) {
    case FieldExtent::kHeader:
      return kHeaderSize;
    case FieldExtent::kTokens:
      return key.num_tokens;
    case FieldExtent::kSeqs:
      return key.num_seqs;
    case FieldExtent::kSeqsPlusOne:
      return int64_t{key.num_seqs} + 1;
  }
  return 0;
}

// Where each field starts; a field the variant lacks has no meaning here.
struct InputOffsets {
  std::array<size_t, kNumInputFields> at{};
  size_t tail = 0;
};

constexpr InputOffsets OffsetsOf(const StepKey& key) {
  InputOffsets offsets;
  for (size_t i = 0; i < kNumInputFields; ++i) {
    const InputFieldSpec& field = kInputFields[i];
    offsets.at[i] = offsets.tail;
    if (field.since > key.sampler) continue;
    offsets.tail = AlignStep(offsets.tail +
                             SizeOf(field.type) * static_cast<size_t>(Count(field.extent, key)));
  }
  return offsets;
}

}  // namespace dlcore

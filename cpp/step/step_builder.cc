#include "step/step_builder.h"

#include <algorithm>

#include "base/check.h"
#include "sched/sequence.h"

namespace dlcore {

StepBuilder::StepBuilder(const StepLimits& limits)
    : limits_(limits), arena_bytes_(StepLayout::MaxInputBytes(limits)) {}

size_t StepBuilder::Fill(const StepPlan& plan, const StepKey& key, std::span<std::byte> mirror) {
  const auto num_seqs = static_cast<int32_t>(plan.sequences.size());
  DLCORE_CHECK(mirror.size() >= arena_bytes_) << mirror.size() << " < " << arena_bytes_;
  DLCORE_CHECK(key.num_tokens >= plan.num_tokens && key.num_seqs >= num_seqs &&
               key.num_seqs >= plan.num_rows && key.sampler >= plan.sampler)
      << "the key does not cover the plan";
  arena_ = mirror.data();
  offsets_ = OffsetsOf(key);

  std::fill_n(Ints(InputField::kHeader), kHeaderSize, 0);
  Header(StepHeader::kNumTokens) = plan.num_tokens;
  Header(StepHeader::kNumSeqs) = num_seqs;
  Header(StepHeader::kNumRows) = plan.num_rows;
  Header(StepHeader::kStepSerial) = plan.serial();
  FillSequences(plan, key);
  Pad(plan, key);
  return FillTail(plan, key, offsets_.tail);
}

void StepBuilder::FillSequences(const StepPlan& plan, const StepKey& key) {
  int32_t token = 0;
  int32_t row = 0;
  int32_t index = 0;
  int32_t max_seq_len = 0;
  int32_t max_query_len = 0;
  for (const PlannedSequence& planned : plan.sequences) {
    Ints(InputField::kRowStartLoc)[index] = row;
    FillTokens(planned, index++, token);
    FillRows(planned, token, row, key.sampler);
    token += planned.num_tokens;
    row += planned.num_prompt_rows + (planned.samples ? 1 : 0);
    max_seq_len = std::max(max_seq_len, planned.end());
    max_query_len = std::max(max_query_len, planned.num_tokens);
  }
  Header(StepHeader::kMaxSeqLen) = max_seq_len;
  Header(StepHeader::kMaxQueryLen) = max_query_len;
}

void StepBuilder::FillTokens(const PlannedSequence& planned, int32_t index, int32_t first_token) {
  const Sequence& sequence = *planned.sequence;
  Ints(InputField::kQueryStartLoc)[index] = first_token;
  Ints(InputField::kSeqLens)[index] = planned.end();
  Ints(InputField::kSeqSlots)[index] = sequence.slot.value;

  const int32_t known = sequence.num_known();
  const int32_t block_size = limits_.block_size;
  int32_t* token_ids = Ints(InputField::kTokenIds) + first_token;
  int32_t* positions = Ints(InputField::kPositions) + first_token;
  int32_t* slot_mapping = Ints(InputField::kSlotMapping) + first_token;
  int32_t* token_seq = Ints(InputField::kTokenSeq) + first_token;
  for (int32_t i = 0; i < planned.num_tokens; ++i) {
    const int32_t position = planned.start + i;
    const BlockId block = sequence.cache.table[position / block_size];
    token_ids[i] = position < known ? sequence.token(position) : kPendingToken;
    positions[i] = position;
    slot_mapping[i] = block.value * block_size + position % block_size;
    token_seq[i] = index;
  }
}

void StepBuilder::FillRows(const PlannedSequence& planned, int32_t first_token, int32_t first_row,
                           SamplerVariant variant) {
  const Sequence& sequence = *planned.sequence;
  int32_t* logits_indices = Ints(InputField::kLogitsIndices);
  int32_t* row_slots = Ints(InputField::kRowSlots);
  int32_t* target_tokens = Ints(InputField::kTargetTokens);
  int32_t row = first_row;
  // Prompt rows are the last ones of the chunk before the prompt's last token.
  const int32_t rows_end = std::min(planned.end(), sequence.prompt_rows_end());
  for (int32_t p = rows_end - planned.num_prompt_rows; p < rows_end; ++p, ++row) {
    logits_indices[row] = first_token + p - planned.start;
    row_slots[row] = kNoSlot.value;
    target_tokens[row] = sequence.token(p + 1);
  }
  if (row > first_row) PadRows(first_row, row, variant);
  if (!planned.samples) return;
  logits_indices[row] = first_token + planned.num_tokens - 1;
  row_slots[row] = sequence.slot.value;
  target_tokens[row] = -1;
  FillSampling(sequence, row, planned.end(), variant);
  if (variant >= SamplerVariant::kFull) {
    Ints(InputField::kCountsReset)[row] = planned.sends_history ? 1 : 0;
  }
}

void StepBuilder::FillSampling(const Sequence& sequence, int32_t row, int32_t position,
                               SamplerVariant variant) {
  if (variant < SamplerVariant::kRandom) return;
  const SamplingParams& p = sequence.sampling();
  Floats(InputField::kTemperature)[row] = p.temperature;
  Floats(InputField::kTopP)[row] = p.top_p;
  Floats(InputField::kMinP)[row] = p.min_p;
  Ints(InputField::kTopK)[row] = p.top_k;
  Longs(InputField::kSeeds)[row] = static_cast<int64_t>(p.seed);
  Ints(InputField::kSamplePositions)[row] = position;
  if (variant < SamplerVariant::kFull) return;
  Floats(InputField::kPresencePenalty)[row] = p.presence_penalty;
  Floats(InputField::kFrequencyPenalty)[row] = p.frequency_penalty;
  Floats(InputField::kRepetitionPenalty)[row] = p.repetition_penalty;
  Ints(InputField::kMaskRows)[row] = -1;
}

void StepBuilder::Pad(const StepPlan& plan, const StepKey& key) {
  const auto pad = [](int32_t* field, int32_t first, int32_t end, int32_t value) {
    std::fill(field + first, field + end, value);
  };
  const auto num_seqs = static_cast<int32_t>(plan.sequences.size());
  pad(Ints(InputField::kTokenIds), plan.num_tokens, key.num_tokens, 0);
  pad(Ints(InputField::kPositions), plan.num_tokens, key.num_tokens, 0);
  pad(Ints(InputField::kSlotMapping), plan.num_tokens, key.num_tokens, -1);
  pad(Ints(InputField::kTokenSeq), plan.num_tokens, key.num_tokens, -1);
  pad(Ints(InputField::kQueryStartLoc), num_seqs, key.num_seqs + 1, plan.num_tokens);
  pad(Ints(InputField::kSeqLens), num_seqs, key.num_seqs, 0);
  pad(Ints(InputField::kSeqSlots), num_seqs, key.num_seqs, kNoSlot.value);
  pad(Ints(InputField::kLogitsIndices), plan.num_rows, key.num_seqs, 0);
  pad(Ints(InputField::kRowStartLoc), num_seqs, key.num_seqs + 1, plan.num_rows);
  pad(Ints(InputField::kRowSlots), plan.num_rows, key.num_seqs, kNoSlot.value);
  pad(Ints(InputField::kTargetTokens), plan.num_rows, key.num_seqs, -1);
  PadRows(plan.num_rows, key.num_seqs, key.sampler);
}

// Sampling fields of rows that sample nothing: neutral values.
void StepBuilder::PadRows(int32_t first, int32_t end, SamplerVariant variant) {
  if (variant < SamplerVariant::kRandom) return;
  const auto pad = [first, end](auto* field, auto value) {
    std::fill(field + first, field + end, value);
  };
  pad(Floats(InputField::kTemperature), 0.0f);
  pad(Floats(InputField::kTopP), 1.0f);
  pad(Floats(InputField::kMinP), 0.0f);
  pad(Ints(InputField::kTopK), 0);
  pad(Longs(InputField::kSeeds), int64_t{0});
  pad(Ints(InputField::kSamplePositions), 0);
  if (variant < SamplerVariant::kFull) return;
  pad(Floats(InputField::kPresencePenalty), 0.0f);
  pad(Floats(InputField::kFrequencyPenalty), 0.0f);
  pad(Floats(InputField::kRepetitionPenalty), 1.0f);
  pad(Ints(InputField::kMaskRows), -1);
  pad(Ints(InputField::kCountsReset), 0);
}

}  // namespace dlcore

#include <bit>

#include "base/check.h"
#include "sched/sequence.h"
#include "step/step_builder.h"
#include "step/token_mask.h"

namespace dlcore {

// Writes the packed sections behind the fixed fields, one after another.
class StepBuilder::Tail {
 public:
  Tail(std::byte* arena, size_t begin) : arena_(arena), end_(begin) {}

  // Where the section that starts here lies, in int32 units.
  int32_t Begin() {
    end_ = AlignStep(end_);
    return static_cast<int32_t>(end_ / sizeof(int32_t));
  }
  void Push(int32_t value) {
    *reinterpret_cast<int32_t*>(arena_ + end_) = value;
    end_ += sizeof(int32_t);
  }
  std::span<uint32_t> Words(int32_t count) {
    auto* words = reinterpret_cast<uint32_t*>(arena_ + end_);
    end_ += static_cast<size_t>(count) * sizeof(uint32_t);
    return {words, static_cast<size_t>(count)};
  }
  [[nodiscard]] size_t end() const { return AlignStep(end_); }

 private:
  std::byte* arena_;
  size_t end_;
};

namespace {

// Calls visit(planned, row) for each sequence that samples.
template <class Visitor>
void ForEachSampledRow(const StepPlan& plan, Visitor visit) {
  int32_t row = 0;
  for (const PlannedSequence& planned : plan.sequences) {
    row += planned.num_prompt_rows;
    if (planned.samples) visit(planned, row++);
  }
}

}  // namespace

size_t StepBuilder::FillTail(const StepPlan& plan, const StepKey& key, size_t begin) {
  Tail tail(arena_, begin);
  AddBlockUpdates(plan, &tail);
  // Sequences that need the other sections make the plan kFull.
  if (plan.sampler >= SamplerVariant::kFull) {
    AddHistory(plan, &tail);
    AddBias(plan, &tail);
    AddMasks(plan, &tail);
  }
  DLCORE_CHECK(tail.end() <= arena_bytes_) << "a step of " << key.num_tokens << " tokens overflows";
  return tail.end();
}

void StepBuilder::AddBlockUpdates(const StepPlan& plan, Tail* tail) {
  Header(StepHeader::kBlockUpdatesOffset) = tail->Begin();
  int32_t& count = Header(StepHeader::kNumBlockUpdates);
  for (const PlannedSequence& planned : plan.sequences) {
    BlockTable& table = planned.sequence->cache.table;
    const int32_t row = planned.sequence->slot.value * limits_.max_blocks_per_seq();
    count += table.num_unsent();
    for (int32_t i = table.num_sent(); i < table.size(); ++i) {
      tail->Push(row + i);
      tail->Push(table[i].value);
    }
    table.MarkSent();
  }
}

void StepBuilder::AddHistory(const StepPlan& plan, Tail* tail) {
  Header(StepHeader::kHistoryOffset) = tail->Begin();
  int32_t& count = Header(StepHeader::kNumHistory);
  ForEachSampledRow(plan, [&](const PlannedSequence& planned, int32_t row) {
    if (!planned.sends_history) return;
    const TokenView tokens = planned.sequence->tokens();
    for (const TokenId token : tokens.prompt) {
      tail->Push(row);
      tail->Push(token);
    }
    for (const TokenId token : tokens.output) {
      tail->Push(row);
      tail->Push(token | kHistoryOutputFlag);
    }
    count += tokens.size();
  });
}

void StepBuilder::AddBias(const StepPlan& plan, Tail* tail) {
  Header(StepHeader::kBiasOffset) = tail->Begin();
  int32_t& count = Header(StepHeader::kNumBias);
  ForEachSampledRow(plan, [&](const PlannedSequence& planned, int32_t row) {
    for (const auto& [token, bias] : planned.sequence->sampling().logit_bias) {
      tail->Push(row);
      tail->Push(token);
      tail->Push(std::bit_cast<int32_t>(bias));
      ++count;
    }
  });
}

void StepBuilder::AddMasks(const StepPlan& plan, Tail* tail) {
  Header(StepHeader::kMasksOffset) = tail->Begin();
  int32_t& count = Header(StepHeader::kNumMasks);
  ForEachSampledRow(plan, [&](const PlannedSequence& planned, int32_t row) {
    const Sequence& sequence = *planned.sequence;
    const int32_t index = planned.end() - sequence.prompt_len();
    if (!NeedsMask(sequence, index)) return;
    BuildMask(sequence, index, limits_.vocab_size, tail->Words(limits_.mask_words()));
    Ints(InputField::kMaskRows)[row] = count++;
  });
}

}  // namespace dlcore

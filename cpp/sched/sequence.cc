#include "sched/sequence.h"

#include <algorithm>
#include <utility>

namespace dlcore {
namespace {

// Outputs reserved at once; longer ones grow by doubling.
constexpr int32_t kOutputReserve = 4096;

bool HasPenalties(const SamplingParams& p) {
  return p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f || p.repetition_penalty != 1.0f;
}

// Whether a bad word's last token may be banned depends on the tokens before it.
bool HasLongBadWord(const SamplingParams& p) {
  return std::ranges::any_of(p.bad_words, [](const auto& word) { return word.size() > 1; });
}

// What every row of the request needs, min_tokens aside.
SamplerVariant LeastVariant(const Request& request) {
  const SamplingParams& p = request.sampling;
  if (HasPenalties(p) || !p.logit_bias.empty() || !p.allowed_token_ids.empty() ||
      !p.bad_words.empty() || p.logprobs >= 0 || request.constraint != nullptr) {
    return SamplerVariant::kFull;
  }
  return p.greedy() ? SamplerVariant::kGreedy : SamplerVariant::kRandom;
}

}  // namespace

Sequence::Sequence(Request request, uint64_t arrival, const EngineOptions& options)
    : has_penalties_(HasPenalties(request.sampling)),
      waits_for_commit_(request.constraint != nullptr || HasLongBadWord(request.sampling)),
      variant_(LeastVariant(request)),
      prompt_len_(static_cast<int32_t>(request.prompt.size())),
      max_total_(static_cast<int32_t>(std::min<int64_t>(
          int64_t{prompt_len_} + request.sampling.max_tokens, options.limits.max_model_len))),
      request_(std::move(request)),
      arrival_(arrival) {
  const SamplingParams& p = request_.sampling;
  if (!p.ignore_eos) stop_ids_ = options.eos_token_ids;
  stop_ids_.insert(stop_ids_.end(), p.stop_token_ids.begin(), p.stop_token_ids.end());
  if (p.prompt_logprobs >= 0) prompt_rows_end_ = prompt_len() - 1;
  output_.reserve(static_cast<size_t>(std::min(max_total_ - prompt_len(), kOutputReserve)));
  const auto& resumed = request_.resume_token_ids;
  output_.insert(output_.end(), resumed.begin(), resumed.end());
  if (constraint() != nullptr && !resumed.empty()) constraint()->Advance(resumed);
}

void Sequence::Admit(SlotId new_slot, int32_t num_cached) {
  state = SequenceState::kRunning;
  slot = new_slot;
  // What is reported counts prompt tokens; resumed output may be cached too.
  if (num_cached_tokens < 0) num_cached_tokens = std::min(num_cached, prompt_len());
}

void Sequence::StartPull(SlotId new_slot) {
  state = SequenceState::kMigrating;
  slot = new_slot;
  pulling = true;
}

void Sequence::FinishPull(int32_t num_pulled) {
  state = SequenceState::kRunning;
  num_planned_ = num_pulled;
  num_cached_tokens = std::min(num_pulled, prompt_len());
}

void Sequence::Plan(int32_t num_tokens, bool samples, int32_t num_prompt_rows) {
  num_planned_ += num_tokens;
  next_prompt_row_ += num_prompt_rows;
  ++num_in_flight_;
  if (!samples) return;
  ++num_pending_;
  history_sent_ = true;
}

void Sequence::CommitPlan(bool sampled) {
  --num_in_flight_;
  if (sampled) --num_pending_;
}

void Sequence::ForgetPlans() {
  num_in_flight_ = 0;
  num_pending_ = 0;
}

void Sequence::ReturnToQueue() {
  state = SequenceState::kWaiting;
  slot = kNoSlot;
  num_planned_ = 0;
  history_sent_ = false;
  was_preempted = true;
}

}  // namespace dlcore

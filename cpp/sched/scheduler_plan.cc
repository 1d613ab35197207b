#include <algorithm>
#include <string>

#include "base/check.h"
#include "sched/scheduler.h"

namespace dlcore {

const StepPlan& Scheduler::NextPlan() {
  PlanRecord& record = plans_.Next();
  StepPlan& plan = record.plan;
  plan.sequences.clear();
  plan.num_tokens = 0;
  plan.num_rows = 0;
  plan.sampler = SamplerVariant::kGreedy;
  room_ = policy_.WholeStep();
  preempted_ = false;

  PlanRunning(&record);
  PlanPrefills(&record);
  Sweep();
  // Whoever was just preempted must not take the blocks straight back.
  if (!preempted_) AdmitWaiting(&record);
  if (plan.empty()) return empty_plan_;

  const auto seqs = static_cast<int32_t>(plan.sequences.size());
  const bool decode = plan.num_tokens == seqs && plan.num_rows == seqs;
  plan.kind = decode ? StepKind::kDecode : StepKind::kMixed;
  plan.step_id = num_plans_++;
  plans_.Push();
  return plan;
}

// Decodes first, so that a long prompt beside them does not slow them down.
void Scheduler::PlanRunning(PlanRecord* record) {
  prefilling_.clear();
  for (Sequence* sequence : running_) {
    if (!sequence->CanPlan()) continue;
    const TokenConstraint* rule = sequence->constraint();
    if (rule != nullptr && rule->Ready() && rule->Finished()) {
      FinishWithOutput(sequence, FinishReason::kStop, {});
    } else if (sequence->num_to_plan() == 1) {
      PlanSequence(sequence, record);
    } else {
      prefilling_.push_back(sequence);
    }
  }
}

void Scheduler::PlanPrefills(PlanRecord* record) {
  for (Sequence* sequence : prefilling_) {
    if (room_.tokens == 0) return;
    if (sequence->CanPlan()) PlanSequence(sequence, record);
  }
}

// False when nothing of the sequence fits this step.
bool Scheduler::PlanSequence(Sequence* sequence, PlanRecord* record) {
  const Chunk chunk = policy_.Fit(*sequence, room_);
  if (chunk.num_tokens == 0) return false;
  if (!Grow(sequence, sequence->num_planned() + chunk.num_tokens)) return false;
  const BlockTable& table = sequence->cache.table;
  if (table.size() - table.num_sent() > room_.block_updates) return false;
  AddToPlan(sequence, chunk, &record->plan);
  return true;
}

void Scheduler::AddToPlan(Sequence* sequence, const Chunk& chunk, StepPlan* plan) {
  plan->sequences.push_back({sequence, sequence->num_planned(), chunk.num_tokens, chunk.samples,
                             chunk.num_prompt_rows, chunk.num_history > 0});
  plan->num_tokens += chunk.num_tokens;
  plan->num_rows += chunk.num_rows();
  room_.tokens -= chunk.num_tokens;
  room_.rows -= chunk.num_rows();
  room_.history -= chunk.num_history;
  room_.block_updates -= sequence->cache.table.size() - sequence->cache.table.num_sent();

  SamplerVariant variant = SamplerVariant::kGreedy;
  if (chunk.num_prompt_rows > 0) variant = SamplerVariant::kFull;
  if (chunk.samples) {
    const int32_t index = sequence->num_known() + sequence->num_pending() - sequence->prompt_len();
    variant = std::max(variant, sequence->VariantAt(index));
  }
  plan->sampler = std::max(plan->sampler, variant);
  sequence->Plan(chunk.num_tokens, chunk.samples, chunk.num_prompt_rows);
}

// Makes the sequence's table cover `num_tokens`, preempting others if it must.
// False when it has to wait, was preempted itself, or failed.
bool Scheduler::Grow(Sequence* sequence, int32_t num_tokens) {
  while (!kv_.Extend(&sequence->cache, num_tokens)) {
    Sequence* victim = FindVictim();
    if (victim == sequence) {
      GiveWay(sequence);
      return false;
    }
    Preempt(victim);
    if (victim->in_flight()) return false;
  }
  return true;
}

// The sequence itself is the one to preempt.
void Scheduler::GiveWay(Sequence* sequence) {
  bool alone = true;
  for (const Sequence* other : running_) {
    if (other == sequence) continue;
    if (other->state == SequenceState::kRunning) {
      alone = false;
    } else if (other->in_flight()) {
      return;  // its blocks are on their way back
    }
  }
  if (!alone) {
    Preempt(sequence);
  } else if (!sequence->in_flight()) {
    FinishWithOutput(sequence, FinishReason::kError, TooSmallPool());
  }
}

std::string Scheduler::TooSmallPool() const {
  return "the KV cache is too small for this sequence alone (num_kv_blocks is " +
         std::to_string(options_.num_kv_blocks) + "); raise num_kv_blocks";
}

// The youngest sequence of the lowest priority. One that may be planned exists:
// whoever asks is running.
Sequence* Scheduler::FindVictim() const {
  const auto it = std::find_if(running_.rbegin(), running_.rend(), [](const Sequence* s) {
    return s->state == SequenceState::kRunning;
  });
  return *it;
}

void Scheduler::Preempt(Sequence* sequence) {
  sequence->state = SequenceState::kPreempting;
  ++stats_.num_preemptions;
  preempted_ = true;
  needs_sweep_ = true;
  // The slot follows in Sweep; the blocks are wanted now.
  if (!sequence->in_flight()) kv_.Release(&sequence->cache);
}

void Scheduler::AdmitWaiting(PlanRecord* record) {
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    if (room_.tokens == 0 || free_slots_.empty()) return;
    Sequence* sequence = *it++;
    if (kv_.BlocksFor(sequence->num_known()) > options_.num_kv_blocks) {
      FinishWithOutput(sequence, FinishReason::kError, TooSmallPool());
      continue;
    }
    if (TryAdmit(sequence, record) == Admission::kBlocked) return;
  }
}

Scheduler::Admission Scheduler::TryAdmit(Sequence* sequence, PlanRecord* record) {
  const int32_t available = kv_.num_available();
  if (blocked_ == sequence && available < blocked_until_) return Admission::kBlocked;

  // The last token is always computed: its logits are what the request came for.
  SequenceCache& cache = sequence->cache;
  const bool may_hit = sequence->next_prompt_row() >= sequence->prompt_rows_end();
  const int32_t max_hit = (sequence->num_known() - 1) / options_.limits.block_size;
  const int32_t cached = kv_.AcquirePrefix(&cache, sequence->tokens(), may_hit ? max_hit : 0) *
                         options_.limits.block_size;
  sequence->StartFrom(cached);
  const Chunk chunk = policy_.Fit(*sequence, room_);

  // A step's worth of blocks is enough to start. A preempted sequence waits until
  // all it had fits again, or it would be preempted over and over.
  const int32_t tokens =
      sequence->was_preempted ? sequence->num_known() : cached + chunk.num_tokens;
  const int32_t missing = kv_.BlocksFor(tokens) - cache.table.size();
  const int32_t updates = kv_.BlocksFor(cached + chunk.num_tokens);
  const bool fits = missing <= kv_.num_available() && updates <= room_.block_updates;
  if (chunk.num_tokens == 0 || !fits) {
    if (chunk.num_tokens > 0 && updates <= room_.block_updates) {
      blocked_ = sequence;
      blocked_until_ = missing + available - kv_.num_available();
    }
    kv_.Release(&cache);
    sequence->StartFrom(0);
    const bool waits_for_mask =
        sequence->constraint() != nullptr && !sequence->constraint()->Ready();
    return chunk.num_tokens == 0 && waits_for_mask ? Admission::kSkipped : Admission::kBlocked;
  }

  if (sequence->num_cached_tokens < 0) {
    stats_.num_prompt_tokens += static_cast<uint64_t>(sequence->prompt_len());
    if (may_hit && kv_.caching()) {
      stats_.num_prefix_queries += static_cast<uint64_t>(sequence->prompt_len());
      stats_.num_prefix_hits += static_cast<uint64_t>(cached);
    }
  }
  const bool grown = kv_.Extend(&cache, cached + chunk.num_tokens);
  DLCORE_CHECK(grown);
  waiting_.Remove(sequence);
  if (blocked_ == sequence) blocked_ = nullptr;
  sequence->Admit(free_slots_.back(), cached);
  free_slots_.pop_back();
  running_.insert(std::ranges::upper_bound(running_, sequence, RunsBefore()), sequence);
  AddToPlan(sequence, chunk, &record->plan);
  return Admission::kAdmitted;
}

}  // namespace dlcore

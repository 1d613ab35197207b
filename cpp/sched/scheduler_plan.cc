#include <algorithm>
#include <string>

#include "base/check.h"
#include "sched/scheduler.h"

namespace dlcore {
namespace {

bool WantsPromptRows(const Sequence& sequence) {
  return sequence.next_prompt_row() < sequence.prompt_rows_end();
}

}  // namespace

const StepPlan& Scheduler::NextPlan() {
  PlanRecord& record = plans_.Next();
  StepPlan& plan = record.plan;
  plan.sequences.clear();
  plan.fills.clear();
  plan.num_tokens = 0;
  plan.num_rows = 0;
  plan.sampler = SamplerVariant::kGreedy;
  room_ = policy_.WholeStep();
  preempted_ = false;

  PlanRunning(&record);
  if (!plan.empty()) policy_.BesideDecodes(&room_, HoldsBack(plan));
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

// Whether the prompts beside these decodes may wait. With every step that passes before the
// answer that may end last begins, all of them end a step later.
bool Scheduler::HoldsBack(const StepPlan& decodes) const {
  const bool may_admit = !waiting_.empty() && !free_slots_.empty();
  if (options_.hold_back_last_answers || (prefilling_.empty() && !may_admit)) return true;
  int32_t most_left = 0;
  for (const PlannedSequence& planned : decodes.sequences) {
    most_left = std::max(most_left, planned.sequence->num_left());
  }
  const auto ends_last = [most_left](const Sequence* s) { return s->num_left() > most_left; };
  if (std::ranges::any_of(prefilling_, ends_last)) return false;
  return !may_admit || !ends_last(*waiting_.begin());
}

void Scheduler::PlanPrefills(PlanRecord* record) {
  for (Sequence* sequence : prefilling_) {
    if (room_.tokens == 0) return;
    if (sequence->CanPlan()) PlanSequence(sequence, record);
  }
}

// Plans what fits this step of a running sequence, if anything.
void Scheduler::PlanSequence(Sequence* sequence, PlanRecord* record) {
  const Chunk chunk = policy_.Fit(*sequence, room_);
  if (chunk.num_tokens == 0) return;
  if (!Grow(sequence, sequence->num_planned() + chunk.num_tokens)) return;
  if (sequence->cache.table.num_unsent() > room_.block_updates) return;
  AddToPlan(sequence, chunk, &record->plan);
}

void Scheduler::AddToPlan(Sequence* sequence, const Chunk& chunk, StepPlan* plan) {
  plan->sequences.push_back({sequence, sequence->num_planned(), chunk.num_tokens, chunk.samples,
                             chunk.num_prompt_rows, chunk.num_history > 0});
  if (sequence->lent && chunk.samples) plan->fills.push_back(sequence->id());
  plan->num_tokens += chunk.num_tokens;
  plan->num_rows += chunk.num_rows();
  room_.tokens -= chunk.num_tokens;
  room_.rows -= chunk.num_rows();
  room_.history -= chunk.num_history;
  room_.block_updates -= sequence->cache.table.num_unsent();

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
    // Blocks on their way back are worth a step's wait: taking more victims than
    // needed costs far more.
    if (BlocksAreReturning()) return false;
    Sequence* victim = FindVictim();
    if (victim == sequence && IsAlone(sequence)) {
      if (sequence->in_flight() || BlocksAreElsewhere()) return false;
      FinishWithOutput(sequence, FinishReason::kError, TooSmallPool());
      return false;
    }
    Preempt(victim);
    if (victim == sequence) return false;
  }
  return true;
}

// True when a plan in flight is all that keeps the blocks of a finished or
// preempted sequence.
bool Scheduler::BlocksAreReturning() const {
  return std::ranges::any_of(running_, [](const Sequence* s) {
    const bool leaves =
        s->state == SequenceState::kFinished || s->state == SequenceState::kPreempting;
    return leaves && s->in_flight();
  });
}

// True when waiting brings blocks back: a lease or a migration has them.
bool Scheduler::BlocksAreElsewhere() const {
  return stats_.num_lent > 0 || stats_.num_migrating > 0;
}

bool Scheduler::IsAlone(const Sequence* sequence) const {
  return std::ranges::none_of(running_, [sequence](const Sequence* s) {
    return s != sequence && s->state == SequenceState::kRunning;
  });
}

std::string Scheduler::TooSmallPool() const {
  return "the KV cache is too small for this sequence alone (num_kv_blocks is " +
         std::to_string(options_.num_kv_blocks) + "); raise num_kv_blocks";
}

// The youngest sequence of the lowest priority, but none whose blocks others may
// read. One exists: whoever asks is running, and what is lent has all its blocks.
Sequence* Scheduler::FindVictim() const {
  const auto it = std::find_if(running_.rbegin(), running_.rend(), [](const Sequence* s) {
    return s->state == SequenceState::kRunning && !s->lent;
  });
  return *it;
}

void Scheduler::Preempt(Sequence* sequence) {
  sequence->state = SequenceState::kPreempting;
  ++stats_.num_preemptions;
  preempted_ = true;
  needs_sweep_ = true;
  // The slot follows in Sweep; the blocks are wanted now.
  if (!sequence->in_flight()) ReleaseBlocks(sequence);
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

  const int32_t cached = TakePrefix(sequence);
  if (cached < PullEnd(*sequence)) return TryMigrate(sequence, cached, available);
  ReleaseSource(sequence);
  const Chunk chunk = policy_.Fit(*sequence, room_);
  const int32_t end = cached + chunk.num_tokens;
  // A step's worth of blocks is enough to start; a reader has to know all of them. A
  // preempted sequence waits until all it had fits again, or it would be preempted
  // over and over.
  const int32_t reserved = sequence->to_lend() ? sequence->num_known() : end;
  const int32_t tokens = sequence->was_preempted ? sequence->num_known() : reserved;
  const int32_t missing = kv_.BlocksFor(tokens) - sequence->cache.table.size();
  const bool fits_step = chunk.num_tokens > 0 && kv_.BlocksFor(reserved) <= room_.block_updates;
  if (fits_step && missing <= kv_.num_available()) {
    Admit(sequence, cached, reserved);
    if (sequence->to_lend()) Lend(sequence, cached);
    AddToPlan(sequence, chunk, &record->plan);
    return Admission::kAdmitted;
  }
  if (fits_step) {
    blocked_ = sequence;
    blocked_until_ = missing + available - kv_.num_available();
  }
  kv_.Release(&sequence->cache);
  sequence->StartFrom(0);
  const TokenConstraint* rule = sequence->constraint();
  const bool waits_for_mask = chunk.num_tokens == 0 && rule != nullptr && !rule->Ready();
  return waits_for_mask ? Admission::kSkipped : Admission::kBlocked;
}

// Takes what the prefix cache holds of the sequence; returns how many tokens.
// The last token is always computed: its logits are what the request came for.
// Prompt logprobs need the logits of every position, so they take nothing.
int32_t Scheduler::TakePrefix(Sequence* sequence) {
  const int32_t block_size = options_.limits.block_size;
  const int32_t most = WantsPromptRows(*sequence) ? 0 : (sequence->num_known() - 1) / block_size;
  const int32_t blocks = kv_.AcquirePrefix(&sequence->cache, sequence->tokens(), most);
  sequence->StartFrom(blocks * block_size);
  return blocks * block_size;
}

// Gives the sequence a slot and the blocks of its first `end` tokens.
void Scheduler::Admit(Sequence* sequence, int32_t cached, int32_t end) {
  if (sequence->num_cached_tokens < 0) {
    const auto known = static_cast<uint64_t>(sequence->num_known());
    stats_.queue_time.Observe(sequence->age());
    stats_.num_prompt_tokens += known;
    if (kv_.caching() && !WantsPromptRows(*sequence)) stats_.num_prefix_queries += known;
    stats_.num_prefix_hits += static_cast<uint64_t>(cached);
  }
  const bool grown = kv_.Extend(&sequence->cache, end);
  DLCORE_CHECK(grown) << "admitted without blocks";
  waiting_.Remove(sequence);
  if (blocked_ == sequence) blocked_ = nullptr;
  sequence->Admit(free_slots_.back(), cached);
  free_slots_.pop_back();
  running_.insert(std::ranges::upper_bound(running_, sequence, RunsBefore()), sequence);
}

}  // namespace dlcore

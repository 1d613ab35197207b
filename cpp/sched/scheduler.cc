#include "sched/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "sched/stop_check.h"
#include "sched/validate.h"

namespace dlcore {
namespace {

KvManager::Options KvOptions(const EngineOptions& o) {
  return {o.num_kv_blocks,
          o.limits.block_size,
          o.enable_prefix_caching,
          {o.hash_key[0], o.hash_key[1]}};
}

TokenLogprobs ReadLogprobs(const StepResult& result, size_t row, int32_t max_logprobs,
                           int32_t top) {
  TokenLogprobs out;
  out.logprob = result.sampled_logprobs[row];
  out.rank = result.sampled_ranks[row];
  const size_t first = row * static_cast<size_t>(max_logprobs);
  const auto count = static_cast<size_t>(top);
  const auto ids = result.top_ids.subspan(first, count);
  const auto logprobs = result.top_logprobs.subspan(first, count);
  out.top_ids.assign(ids.begin(), ids.end());
  out.top_logprobs.assign(logprobs.begin(), logprobs.end());
  return out;
}

}  // namespace

Scheduler::Scheduler(const EngineOptions& options)
    : options_(options), policy_(options), kv_(KvOptions(options)) {
  const auto slots = static_cast<size_t>(options.limits.max_num_seqs);
  free_slots_.reserve(slots);
  for (int32_t i = options.limits.max_num_seqs - 1; i >= 0; --i) free_slots_.emplace_back(i);
  running_.reserve(slots);
  prefilling_.reserve(slots);
  stats_.num_kv_blocks = options.num_kv_blocks;
}

Scheduler::~Scheduler() = default;

Status Scheduler::Submit(Request request) {
  Status status = ValidateRequest(request, options_);
  if (!status.ok()) return status;
  if (sequences_.contains(request.id) || lent_.contains(request.id)) {
    return Status::InvalidArgument("request id " + std::to_string(request.id.value) +
                                   " is in use; ids must be unique");
  }
  const auto limit = static_cast<size_t>(options_.max_waiting_requests);
  if (limit > 0 && waiting_.size() >= limit) {
    return Status::ResourceExhausted("the queue is full: max_waiting_requests is " +
                                     std::to_string(limit));
  }
  auto sequence = std::make_unique<Sequence>(std::move(request), num_submitted_++, options_);
  kv_.Attach(&sequence->cache, sequence->cache_salt(), sequence->max_total());
  waiting_.Push(sequence.get());
  sequences_.emplace(sequence->id(), std::move(sequence));
  return Status::Ok();
}

void Scheduler::Abort(RequestId id) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end() || it->second->state == SequenceState::kFinished) return;
  FinishWithOutput(it->second.get(), FinishReason::kAbort, {});
  Sweep();
}

void Scheduler::FailAll(std::string_view message) {
  for (; !plans_.empty(); plans_.Pop()) kv_.DropRetired(&plans_.Oldest().retired);
  for (Sequence* sequence : running_) {
    sequence->ForgetPlans();
    needs_sweep_ = true;
    if (sequence->state == SequenceState::kFinished) continue;
    FinishWithOutput(sequence, FinishReason::kError, message);
  }
  while (!waiting_.empty()) {
    FinishWithOutput(*waiting_.begin(), FinishReason::kError, message);
  }
  Sweep();
}

void Scheduler::Commit(const StepResult& result) {
  PlanRecord& record = plans_.Oldest();
  const auto rows = static_cast<size_t>(record.plan.num_rows);
  DLCORE_CHECK(result.sampled_tokens.size() >= rows)
      << result.sampled_tokens.size() << " rows for " << rows;
  // What retires from here on waits for the newer plan, if there is one.
  kv_.DropRetired(&record.retired);
  size_t row = 0;
  for (const PlannedSequence& planned : record.plan.sequences) {
    row = CommitSequence(planned, result, row);
  }
  plans_.Pop();
  if (plans_.empty()) kv_.DropRetired(&record.retired);
  Sweep();
}

// Returns the first row after the sequence's.
size_t Scheduler::CommitSequence(const PlannedSequence& planned, const StepResult& result,
                                 size_t row) {
  Sequence* sequence = planned.sequence;
  sequence->CommitPlan(planned.samples);
  const size_t sampled_row = row + static_cast<size_t>(planned.num_prompt_rows);
  const size_t end = sampled_row + (planned.samples ? 1 : 0);
  if (sequence->state == SequenceState::kFinished) {
    needs_sweep_ |= !sequence->in_flight();
    return end;
  }
  if (end > row) {
    SequenceOutput& out = NewOutput(*sequence);
    const int32_t max_logprobs = options_.limits.max_logprobs;
    for (; row < sampled_row; ++row) {
      out.prompt_logprobs.push_back(
          ReadLogprobs(result, row, max_logprobs, sequence->sampling().prompt_logprobs));
    }
    if (planned.samples) TakeToken(sequence, result, sampled_row, &out);
  }
  Publish(sequence, planned.end());
  if (sequence->lent) kv_work_.progress.push_back({sequence->id(), planned.end()});
  if (sequence->state != SequenceState::kRunning) needs_sweep_ |= !sequence->in_flight();
  return end;
}

void Scheduler::TakeToken(Sequence* sequence, const StepResult& result, size_t row,
                          SequenceOutput* out) {
  const TokenId token = result.sampled_tokens[row];
  if (token < 0 || token >= options_.limits.vocab_size) {
    out->finish_reason = FinishReason::kError;
    out->error = "the sampler found no token: its masks allow none, or the logits are not numbers";
    Revoke(sequence);
    Finish(sequence);
    return;
  }
  sequence->AppendOutput(token);
  ++stats_.num_generated_tokens;
  out->tokens.push_back(token);
  const int32_t top = sequence->sampling().logprobs;
  if (top >= 0) {
    out->logprobs.push_back(ReadLogprobs(result, row, options_.limits.max_logprobs, top));
  }
  out->finish_reason = CheckStop(*sequence);
  if (out->finish_reason == FinishReason::kStop) out->stop_token = token;
  if (out->finish_reason != FinishReason::kNone) {
    Finish(sequence);
  } else if (sequence->constraint() != nullptr) {
    sequence->constraint()->Advance({&token, 1});
  }
}

void Scheduler::Publish(Sequence* sequence, int32_t num_computed) {
  // The oldest plan is the one being committed; duplicates may be read by the newest.
  std::vector<BlockId>* retired = sequence->lent ? &sequence->replaced : &plans_.Newest().retired;
  kv_.Publish(&sequence->cache, sequence->tokens(), num_computed, retired);
}

// Ends a sequence without an output of its own; Sweep takes it away.
void Scheduler::Finish(Sequence* sequence) {
  ++stats_.num_finished;
  if (sequence->pulling) {
    kv_work_.aborts.push_back(sequence->id());
  } else {
    ReleaseSource(sequence);
  }
  const bool was_waiting = sequence->state == SequenceState::kWaiting;
  sequence->state = SequenceState::kFinished;
  if (!was_waiting) {
    needs_sweep_ = true;
    return;
  }
  waiting_.Remove(sequence);
  Destroy(sequence);
}

void Scheduler::FinishWithOutput(Sequence* sequence, FinishReason reason, std::string_view error) {
  SequenceOutput& out = NewOutput(*sequence);
  out.finish_reason = reason;
  out.error = error;
  Revoke(sequence);
  Finish(sequence);
}

SequenceOutput& Scheduler::NewOutput(const Sequence& sequence) {
  SequenceOutput& out = outputs_.emplace_back();
  out.id = sequence.id();
  out.num_cached_tokens = std::max(0, sequence.num_cached_tokens);
  return out;
}

// Takes finished and preempted sequences that no plan in flight touches out of
// the running set.
void Scheduler::Sweep() {
  if (!needs_sweep_) return;
  needs_sweep_ = false;
  std::erase_if(running_, [this](Sequence* sequence) {
    const bool stays = sequence->state == SequenceState::kRunning || sequence->in_flight();
    if (stays) return false;
    if (sequence->lent) {
      KeepLent(sequence);
    } else {
      ReleaseBlocks(sequence);
    }
    free_slots_.push_back(sequence->slot);
    if (sequence->state == SequenceState::kFinished) {
      Destroy(sequence);
    } else {
      sequence->ReturnToQueue();
      waiting_.Push(sequence);
    }
    return true;
  });
}

void Scheduler::ReleaseBlocks(Sequence* sequence) {
  kv_.DropRetired(&sequence->replaced);
  kv_.Release(&sequence->cache);
}

void Scheduler::Destroy(Sequence* sequence) {
  if (blocked_ == sequence) blocked_ = nullptr;
  kv_.Detach(&sequence->cache);
  sequences_.erase(sequence->id());
}

void Scheduler::TakeOutputs(OutputBatch* out) {
  if (out->outputs.empty()) {
    std::swap(out->outputs, outputs_);
    return;
  }
  std::ranges::move(outputs_, std::back_inserter(out->outputs));
  outputs_.clear();
}

}  // namespace dlcore

// KV that other nodes hold for us, and ours that we hold for them.
#include <algorithm>
#include <string>
#include <utility>

#include "base/check.h"
#include "sched/scheduler.h"

namespace dlcore {

void Scheduler::TakeKvWork(KvWork* out) {
  *out = std::move(kv_work_);
  kv_work_ = {};
}

// Tokens of the sequence's source worth having. The last known token is always
// computed here: its logits are what the request came for.
int32_t Scheduler::PullEnd(const Sequence& sequence) const {
  const KvSource* source = sequence.kv_source();
  const bool wants_prompt_rows = sequence.next_prompt_row() < sequence.prompt_rows_end();
  if (source == nullptr || wants_prompt_rows) return 0;
  return std::min(source->num_tokens, sequence.num_known() - 1);
}

// Reserves blocks for everything known and asks for what the `cached` tokens
// lack. `available`: blocks there were before the prefix was taken.
Scheduler::Admission Scheduler::TryMigrate(Sequence* sequence, int32_t cached, int32_t available) {
  const int32_t missing = kv_.BlocksFor(sequence->num_known()) - sequence->cache.table.size();
  if (missing > kv_.num_available()) {
    blocked_ = sequence;
    blocked_until_ = missing + available - kv_.num_available();
    kv_.Release(&sequence->cache);
    sequence->StartFrom(0);
    return Admission::kBlocked;
  }
  const bool grown = kv_.Extend(&sequence->cache, sequence->num_known());
  DLCORE_CHECK(grown) << "migrating without blocks";
  waiting_.Remove(sequence);
  if (blocked_ == sequence) blocked_ = nullptr;
  sequence->StartPull(free_slots_.back());
  free_slots_.pop_back();
  running_.insert(std::ranges::upper_bound(running_, sequence, RunsBefore()), sequence);

  MigrationRequest& pull = kv_work_.pulls.emplace_back();
  pull.id = sequence->id();
  pull.sources = sequence->kv_source()->sources;
  const auto blocks = sequence->cache.table.blocks();
  pull.local_blocks.emplace_back(blocks.begin(), blocks.end());
  pull.first_token = cached;
  pull.num_tokens = PullEnd(*sequence);
  ++stats_.num_migrations;
  ++stats_.num_migrating;
  return Admission::kAdmitted;
}

void Scheduler::Advance(std::span<const MigrationEvent> events) {
  for (const MigrationEvent& event : events) {
    const auto it = sequences_.find(event.id);
    if (it == sequences_.end() || !it->second->pulling) continue;
    Sequence* sequence = it->second.get();
    sequence->pulling = false;
    --stats_.num_migrating;
    if (!event.status.ok()) ++stats_.num_failed_migrations;
    if (sequence->state == SequenceState::kFinished) {
      needs_sweep_ = true;
    } else {
      FinishPull(sequence, event.status);
    }
  }
  Sweep();
}

void Scheduler::FinishPull(Sequence* sequence, const Status& status) {
  if (status.ok()) {
    const int32_t end = PullEnd(*sequence);
    const std::optional<KvSource> done = sequence->TakeKvSource();  // completion released it
    DLCORE_CHECK(done.has_value());
    sequence->FinishPull(end);
    stats_.num_prompt_tokens += static_cast<uint64_t>(sequence->prompt_len());
    PublishPulled(sequence, end);
    if (sequence->to_lend()) Lend(sequence, end);
    return;
  }
  if (sequence->kv_source()->recompute_on_failure) {
    ReleaseSource(sequence);
    sequence->state = SequenceState::kPreempting;
    needs_sweep_ = true;
    return;
  }
  const std::optional<KvSource> kept = sequence->TakeKvSource();  // for another node to try
  FinishWithOutput(sequence, FinishReason::kError, "migration_failed: " + status.message());
}

void Scheduler::PublishPulled(Sequence* sequence, int32_t num_pulled) {
  std::vector<BlockId> retired;
  kv_.Publish(&sequence->cache, sequence->tokens(), num_pulled, &retired);
  kv_.DropRetired(&retired);  // no plan has seen this sequence's table yet
}

// Tells the owner that its lease will not be read.
void Scheduler::ReleaseSource(Sequence* sequence) {
  if (sequence->kv_source() == nullptr) return;
  kv_work_.releases.push_back(std::move(sequence->TakeKvSource()->sources));
}

// From now on its blocks may be read by others, as far as they are written.
// REQUIRES: its table covers all known tokens
void Scheduler::Lend(Sequence* sequence, int32_t tokens_done) {
  const auto blocks = sequence->cache.table.blocks();
  KvGrant& grant = kv_work_.grants.emplace_back();
  grant.id = sequence->id();
  grant.blocks.emplace_back(blocks.begin(), blocks.end());
  grant.num_tokens = sequence->num_known();
  grant.tokens_done = tokens_done;
  sequence->StartLending();
  ++stats_.num_lent;
}

// Its KV will not be written to the end, so nobody need wait for it.
void Scheduler::Revoke(Sequence* sequence) {
  if (sequence->lent) kv_work_.revoked.push_back(sequence->id());
}

// Moves the blocks of a sequence that has ended out of its hands.
void Scheduler::KeepLent(Sequence* sequence) {
  LentKv& kept = lent_[sequence->id()];
  kept.cache = std::exchange(sequence->cache, SequenceCache());
  kept.replaced = std::move(sequence->replaced);
}

void Scheduler::ReturnLent(RequestId id) {
  if (const auto it = lent_.find(id); it != lent_.end()) {
    kv_.DropRetired(&it->second.replaced);
    kv_.Release(&it->second.cache);
    kv_.Detach(&it->second.cache);
    lent_.erase(it);
    --stats_.num_lent;
    return;
  }
  const auto it = sequences_.find(id);
  if (it == sequences_.end() || !it->second->lent) return;
  it->second->lent = false;  // it goes on, or ends, for itself
  --stats_.num_lent;
}

}  // namespace dlcore

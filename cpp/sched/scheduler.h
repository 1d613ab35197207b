#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "dlcore/options.h"
#include "dlcore/output.h"
#include "dlcore/request.h"
#include "dlcore/status.h"
#include "dlcore/time_histogram.h"
#include "dlcore/transport.h"
#include "kv/kv_manager.h"
#include "sched/plan_ring.h"
#include "sched/policy.h"
#include "sched/request_queue.h"
#include "sched/sequence.h"
#include "sched/step_plan.h"

namespace dlcore {

// The host's view of a finished step's output arena.
struct StepResult {
  std::span<const int32_t> sampled_tokens;  // [rows]
  std::span<const float> sampled_logprobs;  // [rows], empty unless kFull
  std::span<const int32_t> sampled_ranks;   // [rows]
  std::span<const int32_t> top_ids;         // [rows, max_logprobs]
  std::span<const float> top_logprobs;      // [rows, max_logprobs]
};

// KV of a request with hold_kv, from its admission on: to be put under a lease,
// and kept until ReturnLent.
struct KvGrant {
  RequestId id;
  LeaseBlocks blocks;
  int32_t num_tokens = 0;   // that will be written
  int32_t tokens_done = 0;  // of them written already: cached
};

struct KvProgress {
  RequestId id;
  int32_t tokens_done = 0;
};

// What the scheduler asks of whoever moves KV between nodes.
struct KvWork {
  std::vector<MigrationRequest> pulls;                 // timeouts are the receiver's to set
  std::vector<RequestId> aborts;                       // of pulls; each still ends in an event
  std::vector<std::vector<MigrationSource>> releases;  // remote leases nobody will read
  std::vector<KvGrant> grants;
  std::vector<KvProgress> progress;  // of grants
  std::vector<RequestId> revoked;    // grants whose request ended before its KV was written

  [[nodiscard]] bool empty() const {
    return pulls.empty() && aborts.empty() && releases.empty() && grants.empty() &&
           progress.empty() && revoked.empty();
  }
};

struct SchedulerStats {
  int32_t num_running = 0;
  int32_t num_waiting = 0;
  int32_t num_free_blocks = 0;
  int32_t num_cached_blocks = 0;  // in the prefix cache, unreferenced
  int32_t num_referenced_blocks = 0;
  int32_t num_kv_blocks = 0;
  uint64_t num_preemptions = 0;
  uint64_t num_prompt_tokens = 0;
  uint64_t num_generated_tokens = 0;
  uint64_t num_prefix_queries = 0;  // prompt tokens looked up
  uint64_t num_prefix_hits = 0;     // prompt tokens found
  uint64_t num_finished = 0;
  TimeHistogram queue_time;  // from Submit to the first plan
  int32_t num_migrating = 0;
  int32_t num_lent = 0;  // requests whose KV is under a lease
  uint64_t num_migrations = 0;
  uint64_t num_failed_migrations = 0;
};

// Decides what runs next. Plan out, event in: it never sees a device or a
// transport, so every test of it runs anywhere. Continuous batching, chunked
// prefill mixed with decodes, priorities, preemption with recompute.
//
// Pipelined: a plan may be asked for while the one before is still in flight;
// its decodes then carry kPendingToken. KV blocks of a finished or aborted
// sequence return to the pool only when no plan in flight can write them.
// Thread safety: engine thread only.
class Scheduler {
 public:
  // REQUIRES: options.Validate().ok()
  explicit Scheduler(const EngineOptions& options);
  ~Scheduler();

  // Takes the request, or says why it can never run (field and fix named).
  Status Submit(Request request);

  // Ends the request now; its last output (kAbort) is in the next Commit/TakeOutputs.
  // Unknown ids are ignored: the request may just have finished.
  void Abort(RequestId id);

  // Fails everything queued and running with `message` (watchdog, device lost).
  // Plans in flight are forgotten: they must not be committed, and the device
  // must not run them any more when the next request is submitted.
  void FailAll(std::string_view message);

  // The next step, empty when nothing can run now. The reference stays valid
  // until this plan is committed. At most two plans may be uncommitted.
  const StepPlan& NextPlan();

  // Feeds the results of the oldest uncommitted plan back; rows in plan order
  // (a sequence's prompt-logprob rows before its sampled row).
  void Commit(const StepResult& result);

  // Appends outputs produced since the last call (by Commit, Abort, FailAll, or
  // rejected late) to `out`.
  void TakeOutputs(OutputBatch* out);

  // Moving KV between nodes (scheduler_kv.cc).
  // Replaces `out` by what is wanted since the last call. A pull's blocks are
  // reserved until Advance is told of its end.
  void TakeKvWork(KvWork* out);
  // Pulls that ended, well or not.
  void Advance(std::span<const MigrationEvent> events);
  // The lease on the KV of `id` has ended: nobody reads its blocks any more.
  // Unknown ids are ignored.
  void ReturnLent(RequestId id);

  // True while anything is queued, running or uncommitted.
  [[nodiscard]] bool HasWork() const;
  [[nodiscard]] SchedulerStats Stats() const;
  // One line per sequence, for the watchdog's dump.
  [[nodiscard]] std::string DebugString() const;

 private:
  enum class Admission : uint8_t { kAdmitted, kSkipped, kBlocked };
  struct LentKv {
    SequenceCache cache;
    std::vector<BlockId> replaced;  // see Sequence::replaced
  };

  // Planning (scheduler_plan.cc).
  void PlanRunning(PlanRecord* record);
  [[nodiscard]] bool HoldsBack(const StepPlan& decodes) const;
  void PlanPrefills(PlanRecord* record);
  void AdmitWaiting(PlanRecord* record);
  Admission TryAdmit(Sequence* sequence, PlanRecord* record);
  int32_t TakePrefix(Sequence* sequence);
  void Admit(Sequence* sequence, int32_t cached, int32_t end);
  void PlanSequence(Sequence* sequence, PlanRecord* record);
  void AddToPlan(Sequence* sequence, const Chunk& chunk, StepPlan* plan);
  bool Grow(Sequence* sequence, int32_t num_tokens);
  void Preempt(Sequence* sequence);
  [[nodiscard]] bool BlocksAreReturning() const;
  [[nodiscard]] bool BlocksAreElsewhere() const;
  [[nodiscard]] bool IsAlone(const Sequence* sequence) const;
  [[nodiscard]] Sequence* FindVictim() const;
  [[nodiscard]] std::string TooSmallPool() const;

  // KV of other nodes (scheduler_kv.cc).
  [[nodiscard]] int32_t PullEnd(const Sequence& sequence) const;
  Admission TryMigrate(Sequence* sequence, int32_t cached, int32_t available);
  void FinishPull(Sequence* sequence, const Status& status);
  void PublishPulled(Sequence* sequence, int32_t num_pulled);
  void ReleaseSource(Sequence* sequence);
  void Lend(Sequence* sequence, int32_t tokens_done);
  void Revoke(Sequence* sequence);
  void KeepLent(Sequence* sequence);

  // Results (scheduler.cc).
  size_t CommitSequence(const PlannedSequence& planned, const StepResult& result, size_t row);
  void TakeToken(Sequence* sequence, const StepResult& result, size_t row, SequenceOutput* out);
  void Publish(Sequence* sequence, int32_t num_computed);
  void Finish(Sequence* sequence);
  void FinishWithOutput(Sequence* sequence, FinishReason reason, std::string_view error);
  void Sweep();
  void ReleaseBlocks(Sequence* sequence);
  void Destroy(Sequence* sequence);
  SequenceOutput& NewOutput(const Sequence& sequence);

  const EngineOptions options_;
  const ChunkPolicy policy_;
  KvManager kv_;
  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  RequestQueue waiting_;
  std::vector<Sequence*> running_;     // holds a slot; best first, see RunsBefore
  std::vector<Sequence*> prefilling_;  // scratch of NextPlan
  std::vector<SlotId> free_slots_;
  PlanRing plans_;
  StepPlan empty_plan_;
  StepRoom room_;                      // of the step being planned
  bool preempted_ = false;             // in the step being planned
  bool needs_sweep_ = false;           // running_ holds sequences that are done or preempted
  const Sequence* blocked_ = nullptr;  // head of the queue that did not fit last time,
  int32_t blocked_until_ = 0;          // and the available blocks it needs
  std::vector<SequenceOutput> outputs_;
  std::unordered_map<RequestId, LentKv> lent_;  // of requests that have ended
  KvWork kv_work_;
  SchedulerStats stats_;
  uint64_t num_submitted_ = 0;
  uint64_t num_plans_ = 0;
};

}  // namespace dlcore

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dlcore/options.h"
#include "dlcore/output.h"
#include "dlcore/request.h"
#include "dlcore/status.h"
#include "sched/step_plan.h"

namespace dlcore {

// The host's view of a finished step's output arena.
struct StepResult {
  std::span<const int32_t> sampled_tokens;    // [rows]
  std::span<const float> sampled_logprobs;    // [rows], empty unless kFull
  std::span<const int32_t> sampled_ranks;     // [rows]
  std::span<const int32_t> top_ids;           // [rows, max_logprobs]
  std::span<const float> top_logprobs;        // [rows, max_logprobs]
};

struct SchedulerStats {
  int32_t num_running = 0;
  int32_t num_waiting = 0;
  int32_t num_free_blocks = 0;
  int32_t num_cached_blocks = 0;      // in the prefix cache, unreferenced
  int32_t num_referenced_blocks = 0;
  int32_t num_kv_blocks = 0;
  uint64_t num_preemptions = 0;
  uint64_t num_prompt_tokens = 0;
  uint64_t num_generated_tokens = 0;
  uint64_t num_prefix_queries = 0;    // prompt tokens looked up
  uint64_t num_prefix_hits = 0;       // prompt tokens found
  uint64_t num_finished = 0;
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
  explicit Scheduler(const EngineOptions& options);
  ~Scheduler();

  // Takes the request, or says why it can never run (field and fix named).
  Status Submit(Request request);

  // Ends the request now; its last output (kAbort) is in the next Commit/TakeOutputs.
  // Unknown ids are ignored: the request may just have finished.
  void Abort(RequestId id);

  // Fails everything queued and running with `message` (watchdog, device lost).
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

  // True while anything is queued, running or uncommitted.
  [[nodiscard]] bool HasWork() const;
  [[nodiscard]] SchedulerStats Stats() const;
  // One line per sequence, for the watchdog's dump.
  [[nodiscard]] std::string DebugString() const;

 private:
  struct Impl;  // replaced by real members as the classes below it land
  std::unique_ptr<Impl> impl_;
};

}  // namespace dlcore

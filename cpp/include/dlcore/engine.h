#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dlcore/kv_counters.h"
#include "dlcore/kv_transfer.h"
#include "dlcore/options.h"
#include "dlcore/output.h"
#include "dlcore/request.h"
#include "dlcore/status.h"
#include "dlcore/time_histogram.h"

namespace dlcore {

class Device;
class Executable;

struct EngineStats {
  // Scheduler counters (see sched/scheduler.h), copied once a step.
  int32_t num_running = 0;
  int32_t num_waiting = 0;
  int32_t num_free_blocks = 0;
  int32_t num_cached_blocks = 0;
  int32_t num_referenced_blocks = 0;
  int32_t num_kv_blocks = 0;
  uint64_t num_preemptions = 0;
  uint64_t num_prompt_tokens = 0;
  uint64_t num_generated_tokens = 0;
  uint64_t num_prefix_queries = 0;
  uint64_t num_prefix_hits = 0;
  uint64_t num_finished = 0;
  TimeHistogram queue_time;
  int32_t num_migrating = 0;  // sequences whose KV is being pulled
  int32_t num_kv_leases = 0;  // requests whose KV is under a lease
  uint64_t num_migrations = 0;
  uint64_t num_failed_migrations = 0;
  // Of the transports, as they are now; zero where the engine moves no KV.
  LeaseCounters leases;
  MigrationCounters pulls;
  // The loop.
  uint64_t num_steps = 0;
  double step_cpu_seconds = 0;  // plan + fill + launch + commit, summed
  double device_wait_seconds = 0;
  bool healthy = true;  // false after a stall or a lost device
};

// The loop: one thread that takes requests, plans a step, fills the arena,
// launches, and hands out the tokens of the step before.
// Thread safety: every public method may be called from any thread.
class Engine {
 public:
  // Addresses the executables were captured with: of the device's arenas, and of host
  // memory the device can write.
  struct Arenas {
    uint64_t input = 0;       // StepLayout::MaxInputBytes
    uint64_t output = 0;      // StepLayout::MaxOutputBytes
    uint64_t layer_word = 0;  // see LayerWord; 0 = no executable writes it
  };

  // Validates the options; the thread starts with Start().
  static Status Create(const EngineOptions& options, std::unique_ptr<Device> device, Arenas arenas,
                       std::unique_ptr<Engine>* out);
  ~Engine();  // Stop()

  // Registers what runs steps up to `key` (the smallest registered key that
  // covers a plan is chosen). Before Start only.
  Status AddExecutable(const StepKey& key, std::unique_ptr<Executable> executable);
  // Runs every step with exact counts, no buckets (CPU). Before Start only.
  Status SetExactExecutable(std::unique_ptr<Executable> executable);

  // Lets the engine give and take KV (Request::hold_kv, Request::kv_source).
  // Before Start only, once. The pool of `options.layout` must outlive the engine.
  Status OpenKvTransfer(const KvTransferOptions& options);
  // For an executable that runs on the engine thread, in place of the layer word:
  // layers [0, layers_done) of the KV of all tokens of its step are written, so
  // readers may have them. InvalidArgument outside of Executable::Launch.
  Status ReportLayers(int32_t layers_done);
  // What readers of this engine's leases connect to.
  [[nodiscard]] std::vector<std::string> KvEndpoints() const;
  // The endpoint to name in a KvSource, among those another engine offers.
  // Unavailable says why none fits.
  Status ChooseKvEndpoint(std::span<const std::string> offered, std::string* out) const;
  // Ends a lease this engine granted. PermissionDenied when it has ended already.
  Status ReleaseKvLease(LeaseRef lease);

  Status Start();
  // Fails what is queued or running with kAbort and joins the thread. Idempotent. False when a step
  // hangs: its thread is left behind, and what steps read and write must stay.
  bool Stop();

  Status Submit(Request request);
  void Abort(RequestId id);

  // Waits up to `timeout_s` for outputs and takes all there are. False on
  // timeout. When it returns false after Stop, nothing will ever come.
  bool Poll(double timeout_s, OutputBatch* out);
  // An eventfd readable while outputs wait; for event loops.
  [[nodiscard]] int output_fd() const;
  // Called by token constraints when a mask became ready. Any thread.
  void Wake();

  [[nodiscard]] EngineStats Stats() const;
  // Human-readable state for the watchdog's dump and `/debug`.
  [[nodiscard]] std::string DebugString() const;

 private:
  Engine();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dlcore

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "dlcore/kv_transfer.h"
#include "dlcore/output.h"
#include "sched/scheduler.h"
#include "transport/kv_migrator.h"
#include "transport/lease_table.h"
#include "transport/pool_memory.h"

namespace dlcore {

// Carries the scheduler's wishes to the transports and their events back. Never
// waits: migrations run on the migrator's threads, leases are served on the
// servers' own.
// Thread safety: engine thread, except where said.
class KvLink {
 public:
  // `wake` is called from other threads when Deliver has something.
  // InvalidArgument names the field; Unavailable when a transport cannot listen.
  static Status Create(const KvTransferOptions& options, std::function<void()> wake,
                       std::unique_ptr<KvLink>* out);
  // Stops serving and pulling; the pool is not touched any more when it returns.
  ~KvLink();

  // Tells the scheduler which pulls ended and which held KV came back, and ends
  // leases past their time.
  void Deliver(Scheduler* scheduler);
  // Posts what the scheduler wants; adds a row to `batch` for every new lease.
  void Post(Scheduler* scheduler, OutputBatch* batch);
  // Layers [0, layers_done) of all tokens under the leases of `ids` are written.
  // Leases that have ended, or know more, are passed over.
  void MarkLayersDone(std::span<const RequestId> ids, int32_t layers_done);
  // Ends the lease of a request, if it has one.
  void Abort(RequestId id);
  // True while leases may expire, so Deliver must be called now and then.
  [[nodiscard]] bool holds_leases() const { return !requests_.empty(); }

  // Any thread.
  Status Release(LeaseRef lease) { return leases_->Release(lease); }
  [[nodiscard]] LeaseCounters lease_counters() const { return leases_->counters(); }
  [[nodiscard]] MigrationCounters migration_counters() const { return migrator_->counters(); }
  // What readers connect to; fixed once created.
  [[nodiscard]] const std::vector<std::string>& endpoints() const { return endpoints_; }
  // The endpoint this engine should use among those another one offers.
  Status ChooseEndpoint(std::span<const std::string> offered, std::string* out) const;

 private:
  KvLink(const KvTransferOptions& options, std::function<void()> wake,
         std::unique_ptr<PoolMemory> device_memory);
  Status Listen();
  [[nodiscard]] PoolMemory* memory() const {
    return device_memory_ != nullptr ? device_memory_.get() : &HostPoolMemory();
  }
  void Grant(KvGrant grant, Scheduler* scheduler, OutputBatch* batch);
  void Advance(const KvProgress& progress);
  void TakeReturned(Scheduler* scheduler);

  const KvTransferOptions options_;
  const std::function<void()> wake_;
  std::vector<std::string> endpoints_;

  std::mutex mutex_;
  std::vector<LeaseRef> returned_;  // guarded by mutex_

  std::unordered_map<uint64_t, RequestId> requests_;  // by epoch of the lease
  std::unordered_map<RequestId, LeaseRef> by_request_;
  TimePoint next_expiry_;
  KvWork work_;
  std::vector<MigrationEvent> events_;

  // In the order they must be made; torn down in reverse.
  std::unique_ptr<PoolMemory> device_memory_;  // null: the pool lies in host memory
  std::unique_ptr<LeaseTable> leases_;
  std::vector<std::unique_ptr<TransportServer>> servers_;
  std::unique_ptr<KvMigrator> migrator_;
};

}  // namespace dlcore

#include "engine/kv_link.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "transport/pool_memory.h"
#include "transport/registry.h"

namespace dlcore {
namespace {

// Leases end at most this long after their time.
constexpr auto kExpiryPeriod = std::chrono::milliseconds(50);

// The transports to offer: those asked for, or all that work on this machine
// with the pool where it is.
std::vector<std::string> Offered(const KvTransferOptions& options) {
  if (!options.transports.empty()) return options.transports;
  std::vector<std::string> names;
  for (const TransportFactory* factory : Transports()) {
    const bool reaches_pool = !factory->device_memory || options.cuda_device >= 0;
    const bool offered = reaches_pool && !factory->on_request;
    if (offered && factory->available().ok()) names.emplace_back(factory->name);
  }
  return names;
}

}  // namespace

Status KvTransferOptions::Validate() const {
  if (Status s = layout.Validate(); !s.ok()) return s;
  if (key.size() < 16) return Status::InvalidArgument("key must have at least 16 bytes");
  if (lease_ttl.count() <= 0) return Status::InvalidArgument("lease_ttl must be positive");
  if (pull_timeout.count() <= 0) return Status::InvalidArgument("pull_timeout must be positive");
  for (const std::string& name : transports) {
    const TransportFactory* factory = nullptr;
    if (Status s = FindTransport(name, &factory); !s.ok()) return s;
    if (factory->device_memory && cuda_device < 0) {
      return Status::InvalidArgument("transports: " + name + " needs the pool in GPU memory");
    }
    if (Status s = factory->available(); !s.ok()) return s;
  }
  return Status::Ok();
}

Status KvLink::Create(const KvTransferOptions& options, std::function<void()> wake,
                      std::unique_ptr<KvLink>* out) {
  if (Status s = options.Validate(); !s.ok()) return s;
  std::unique_ptr<PoolMemory> device_memory;
  if (options.cuda_device >= 0) {
    if (Status s = NewCudaPoolMemory(options.cuda_device, &device_memory); !s.ok()) return s;
  }
  std::unique_ptr<KvLink> link(new KvLink(options, std::move(wake), std::move(device_memory)));
  if (options.serves) {
    if (Status s = link->Listen(); !s.ok()) return s;
  }
  *out = std::move(link);
  return Status::Ok();
}

KvLink::KvLink(const KvTransferOptions& options, std::function<void()> wake,
               std::unique_ptr<PoolMemory> device_memory)
    : options_(options), wake_(std::move(wake)), device_memory_(std::move(device_memory)) {
  LeaseTable::Options lease_options;
  lease_options.ttl = options_.lease_ttl;
  leases_ = std::make_unique<LeaseTable>(options_.layout, lease_options,
                                         [this](LeaseRef lease, const LeaseBlocks&) {
                                           {
                                             const std::lock_guard lock(mutex_);
                                             returned_.push_back(lease);
                                           }
                                           wake_();
                                         });
  KvMigrator::Options migrator;
  migrator.layout = options_.layout;
  migrator.transport.key = options_.key;
  migrator.transport.device = options_.rdma_device;
  migrator.transport.memory = memory();
  migrator.on_event = wake_;
  migrator_ = std::make_unique<KvMigrator>(std::move(migrator));
}

KvLink::~KvLink() {
  migrator_.reset();
  servers_.clear();
}

// A transport that was asked for must work; of the others, one must.
Status KvLink::Listen() {
  TransportServerOptions server;
  server.key = options_.key;
  server.host = options_.host;
  server.port = options_.port;
  server.socket_dir = options_.socket_dir;
  server.device = options_.rdma_device;
  server.leases = leases_.get();
  server.memory = memory();
  Status last = Status::Unavailable("no transport works on this machine");
  for (const std::string& name : Offered(options_)) {
    std::unique_ptr<TransportServer> made;
    last = NewTransportServer(name, server, &made);
    if (!last.ok() && !options_.transports.empty()) return last;
    if (!last.ok()) {
      Log(LogLevel::kWarning, "transport " + name + " is not offered: " + last.message());
      continue;
    }
    endpoints_.push_back(made->endpoint());
    servers_.push_back(std::move(made));
  }
  return endpoints_.empty() ? last : Status::Ok();
}

Status KvLink::ChooseEndpoint(std::span<const std::string> offered, std::string* out) const {
  const bool one = options_.transports.size() == 1;
  return dlcore::ChooseEndpoint(offered, one ? options_.transports.front() : "",
                                options_.cuda_device >= 0, out);
}

void KvLink::Deliver(Scheduler* scheduler) {
  events_.clear();
  migrator_->PollCompleted(&events_);
  if (!events_.empty()) scheduler->Advance(events_);
  if (requests_.empty()) return;
  const TimePoint now = std::chrono::steady_clock::now();
  if (now >= next_expiry_) {
    leases_->Expire();
    next_expiry_ = now + kExpiryPeriod;
  }
  TakeReturned(scheduler);
}

void KvLink::TakeReturned(Scheduler* scheduler) {
  std::vector<LeaseRef> returned;
  {
    const std::lock_guard lock(mutex_);
    returned.swap(returned_);
  }
  for (const LeaseRef lease : returned) {
    const auto it = requests_.find(lease.epoch);
    DLCORE_CHECK(it != requests_.end()) << "a lease nobody made";
    scheduler->ReturnLent(it->second);
    by_request_.erase(it->second);
    requests_.erase(it);
  }
}

void KvLink::Post(Scheduler* scheduler, OutputBatch* batch) {
  scheduler->TakeKvWork(&work_);
  if (work_.empty()) return;
  for (MigrationRequest& pull : work_.pulls) {
    pull.timeout = options_.pull_timeout;
    migrator_->Post(std::move(pull));
  }
  for (const RequestId id : work_.aborts) migrator_->Abort(id);
  for (auto& sources : work_.releases) migrator_->Release(std::move(sources));
  for (KvGrant& grant : work_.grants) Grant(std::move(grant), scheduler, batch);
  for (const KvProgress& progress : work_.progress) Advance(progress);
  for (const RequestId id : work_.revoked) Abort(id);
}

void KvLink::Grant(KvGrant grant, Scheduler* scheduler, OutputBatch* batch) {
  LeaseRef lease;
  const Status status = leases_->Create(std::move(grant.blocks), grant.num_tokens, &lease);
  if (!status.ok()) {
    Log(LogLevel::kError,
        "no lease for request " + std::to_string(grant.id.value) + ": " + status.message());
    return scheduler->ReturnLent(grant.id);
  }
  requests_[lease.epoch] = grant.id;
  by_request_[grant.id] = lease;
  if (grant.tokens_done > 0) Advance({grant.id, grant.tokens_done});
  SequenceOutput& row = batch->outputs.emplace_back();
  row.id = grant.id;
  row.num_cached_tokens = grant.tokens_done;
  row.kv_lease = KvLease{lease, grant.num_tokens};
}

void KvLink::Advance(const KvProgress& progress) {
  const auto it = by_request_.find(progress.id);
  if (it == by_request_.end()) return;
  // Refused: it was released or has expired just now.
  static_cast<void>(leases_->MarkTokensDone(it->second, progress.tokens_done));
}

void KvLink::MarkLayersDone(std::span<const RequestId> ids, int32_t layers_done) {
  for (const RequestId id : ids) {
    const auto it = by_request_.find(id);
    if (it == by_request_.end()) continue;
    static_cast<void>(leases_->MarkLayersDone(it->second, layers_done));
  }
}

void KvLink::Abort(RequestId id) {
  const auto it = by_request_.find(id);
  if (it == by_request_.end()) return;
  static_cast<void>(leases_->Abort(it->second));  // refused: a reader ended it just now
}

}  // namespace dlcore

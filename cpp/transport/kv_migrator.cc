#include "transport/kv_migrator.h"

#include <utility>

#include "base/check.h"
#include "transport/registry.h"

namespace dlcore {

KvMigrator::KvMigrator(Options options) : options_(std::move(options)) {
  DLCORE_CHECK(options_.layout.Validate().ok()) << options_.layout.Validate().message();
  DLCORE_CHECK(options_.layers_in_flight > 0);
  thread_ = std::thread([this] { Run(); });
}

KvMigrator::~KvMigrator() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

// ---- The engine's thread ----

void KvMigrator::Post(MigrationRequest request) {
  {
    const std::lock_guard lock(mutex_);
    posted_.push_back(std::move(request));
  }
  changed_.notify_one();
}

void KvMigrator::Abort(RequestId id) {
  {
    const std::lock_guard lock(mutex_);
    aborted_.push_back(id);
  }
  changed_.notify_one();
}

void KvMigrator::Release(std::vector<MigrationSource> sources) {
  {
    const std::lock_guard lock(mutex_);
    released_.push_back(std::move(sources));
  }
  changed_.notify_one();
}

void KvMigrator::PollCompleted(std::vector<MigrationEvent>* out) {
  const std::lock_guard lock(mutex_);
  std::move(completed_.begin(), completed_.end(), std::back_inserter(*out));
  completed_.clear();
}

// ---- The migrator's thread ----

void KvMigrator::WaitForWork() {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, options_.idle_timeout, [this] {
    return stopping_ || signalled_ || !posted_.empty() || !aborted_.empty() || !released_.empty();
  });
  signalled_ = false;
}

void KvMigrator::Run() {
  while (true) {
    WaitForWork();
    std::vector<MigrationRequest> posted;
    std::vector<RequestId> aborted;
    std::vector<std::vector<MigrationSource>> released;
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) break;
      posted.swap(posted_);
      aborted.swap(aborted_);
      released.swap(released_);
    }
    for (MigrationRequest& request : posted) Start(std::move(request));
    for (const RequestId id : aborted) AbortNow(id);
    for (const auto& sources : released) ReleaseAll(sources);
    DispatchEvents();
    CloseIdlePeers();
  }
  peers_.clear();  // before the migrations whose memory they write
}

void KvMigrator::Start(MigrationRequest request) {
  const uint64_t serial = next_serial_++;
  auto migration = std::make_unique<KvMigration>(serial, std::move(request), options_.layout,
                                                 options_.layers_in_flight);
  KvMigration* started = migration.get();
  migrations_[serial] = std::move(migration);
  Advance(started);
}

void KvMigrator::AbortNow(RequestId id) {
  for (auto it = migrations_.begin(); it != migrations_.end();) {
    KvMigration* migration = (it++)->second.get();
    if (migration->request().id != id) continue;
    ReleaseAll(migration->request().sources);
    migration->Abort();
    Advance(migration);
  }
}

void KvMigrator::Advance(KvMigration* migration) {
  const MigrationRequest& request = migration->request();
  for (MigrationStep& step : migration->TakeSteps()) {
    const MigrationSource& source = request.sources[step.source];
    Peer* peer = nullptr;
    const Status s = GetPeer(source.endpoint, &peer);
    if (!s.ok()) {
      TransportEvent refused;
      refused.kind = step.kind == MigrationStep::Kind::kRead ? TransportEvent::Kind::kReadDone
                                                             : TransportEvent::Kind::kLeaseOpened;
      refused.status = s;
      migration->OnEvent(step.source, std::move(refused));
      continue;
    }
    const uint64_t tag = next_tag_++;
    const TimePoint deadline = std::chrono::steady_clock::now() + request.timeout;
    peer->targets[tag] = {migration->serial(), step.source};
    if (step.kind == MigrationStep::Kind::kRead) {
      peer->client->Read(tag, source.lease, step.layer, std::move(step.ranges), deadline);
    } else {
      peer->client->OpenLease(tag, source.lease, step.at_least, deadline);
    }
  }
  if (!migration->status().ok()) CancelReads(migration->serial());
  if (migration->done()) Finish(*migration);
}

void KvMigrator::CancelReads(uint64_t serial) {
  for (auto& [endpoint, peer] : peers_) {
    for (const auto& [tag, target] : peer.targets) {
      if (target.serial == serial) peer.client->Cancel(tag);
    }
  }
}

void KvMigrator::Finish(const KvMigration& migration) {
  const MigrationRequest& request = migration.request();
  if (migration.status().ok() && request.release_when_done) ReleaseAll(request.sources);
  {
    const std::lock_guard lock(mutex_);
    Count(migration);
    completed_.push_back(
        {request.id, migration.status(), migration.status().ok() ? migration.bytes() : 0});
  }
  migrations_.erase(migration.serial());
  if (options_.on_event) options_.on_event();
}

// REQUIRES: mutex_ is held
void KvMigrator::Count(const KvMigration& migration) {
  counters_.bytes += migration.bytes();
  counters_.early_bytes += migration.early_bytes();
  if (migration.aborted()) {
    ++counters_.aborted;
  } else if (!migration.status().ok()) {
    ++counters_.failed;
  } else {
    ++counters_.completed;
    counters_.seconds.Observe(migration.age());
  }
}

MigrationCounters KvMigrator::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

void KvMigrator::ReleaseAll(const std::vector<MigrationSource>& sources) {
  for (const MigrationSource& source : sources) {
    Peer* peer = nullptr;
    if (GetPeer(source.endpoint, &peer).ok()) peer->client->Release(source.lease);
  }
}

void KvMigrator::DispatchEvents() {
  std::vector<std::pair<Target, TransportEvent>> events;
  for (auto& [endpoint, peer] : peers_) {
    std::vector<TransportEvent> happened;
    peer.client->Poll(&happened);
    for (TransportEvent& event : happened) {
      const auto it = peer.targets.find(event.tag);
      DLCORE_CHECK(it != peer.targets.end()) << "an event nobody asked for";
      events.emplace_back(it->second, std::move(event));
      peer.targets.erase(it);
    }
  }
  for (auto& [target, event] : events) {
    KvMigration* migration = migrations_.at(target.serial).get();
    migration->OnEvent(target.source, std::move(event));
    Advance(migration);
  }
}

Status KvMigrator::GetPeer(const std::string& endpoint, Peer** out) {
  const auto it = peers_.find(endpoint);
  if (it == peers_.end()) {
    TransportClientOptions options = options_.transport;
    options.on_event = [this] {
      {
        const std::lock_guard lock(mutex_);
        signalled_ = true;
      }
      changed_.notify_one();
    };
    std::unique_ptr<TransportClient> client;
    if (Status s = NewTransportClient(endpoint, options, &client); !s.ok()) return s;
    peers_[endpoint].client = std::move(client);
  }
  Peer& peer = peers_[endpoint];
  peer.last_used = std::chrono::steady_clock::now();
  *out = &peer;
  return Status::Ok();
}

void KvMigrator::CloseIdlePeers() {
  const TimePoint idle_since = std::chrono::steady_clock::now() - options_.idle_timeout;
  std::erase_if(peers_, [&](const auto& entry) {
    return entry.second.targets.empty() && entry.second.last_used < idle_since;
  });
}

}  // namespace dlcore

#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "dlcore/kv_counters.h"
#include "dlcore/transport.h"
#include "dlcore/types.h"
#include "transport/kv_migration.h"

namespace dlcore {

// Pulls leased KV into local blocks, layer by layer, starting while the owner
// still computes. Connecting, planning and copying happen on its own threads;
// Post, Abort and PollCompleted only touch queues. A migration that fails is not
// retried here, and keeps its lease: the router knows which other node to send
// to it before it expires.
// The local blocks of a migration may be written until its event is polled, and
// never after.
// Thread safety: Post, Abort and PollCompleted from the engine thread.
class KvMigrator {
 public:
  struct Options {
    KvLayout layout;  // of the local pool
    TransportClientOptions transport;
    int32_t layers_in_flight = 4;  // per source
    // A connection unused for so long is closed.
    std::chrono::milliseconds idle_timeout{60000};
    std::function<void()> on_event;  // from the migrator's thread, when PollCompleted has something
  };

  // REQUIRES: options.layout.Validate().ok()
  explicit KvMigrator(Options options);
  ~KvMigrator();  // ends every migration without an event

  void Post(MigrationRequest request);
  // Ends the migration on both sides: reads stop, leases are released. Its event
  // (Unavailable) still comes. Unknown ids are ignored.
  void Abort(RequestId id);
  // Tells the owners that the leases are no longer needed.
  void Release(std::vector<MigrationSource> sources);
  // Appends what ended since the last call.
  void PollCompleted(std::vector<MigrationEvent>* out);
  // Since it was made. Any thread.
  [[nodiscard]] MigrationCounters counters() const;

 private:
  // Where an event of a client belongs.
  struct Target {
    uint64_t serial = 0;
    size_t source = 0;
  };
  struct Peer {
    std::unique_ptr<TransportClient> client;
    TimePoint last_used;
    std::map<uint64_t, Target> targets;  // operations under way, by tag
  };

  void Run();
  void WaitForWork();
  void Start(MigrationRequest request);
  void AbortNow(RequestId id);
  void DispatchEvents();
  // Carries out what the migration wants next, or ends it.
  void Advance(KvMigration* migration);
  void Finish(const KvMigration& migration);
  void Count(const KvMigration& migration);
  void CancelReads(uint64_t serial);
  void ReleaseAll(const std::vector<MigrationSource>& sources);
  void CloseIdlePeers();
  Status GetPeer(const std::string& endpoint, Peer** out);

  const Options options_;

  mutable std::mutex mutex_;  // guards what follows, up to stopping_
  std::condition_variable changed_;
  std::vector<MigrationRequest> posted_;
  std::vector<RequestId> aborted_;
  std::vector<std::vector<MigrationSource>> released_;
  std::vector<MigrationEvent> completed_;
  MigrationCounters counters_;
  bool signalled_ = false;
  bool stopping_ = false;

  // The migrator's thread only.
  std::map<std::string, Peer> peers_;                            // by endpoint
  std::map<uint64_t, std::unique_ptr<KvMigration>> migrations_;  // by serial
  uint64_t next_serial_ = 0;
  uint64_t next_tag_ = 0;
  std::thread thread_;
};

}  // namespace dlcore

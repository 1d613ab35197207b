#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dlcore/kv_counters.h"
#include "dlcore/status.h"
#include "dlcore/transport.h"
#include "transport/lease_state.h"

namespace dlcore {

inline constexpr size_t kMaxLeaseBlocks = 1 << 18;  // over all groups of one lease

// Addresses in a pool.
struct MemoryRange {
  uint64_t address = 0;
  uint64_t length = 0;
};

// Bytes of one layer, as a reader asks for them.
struct LayerRange {
  uint64_t offset = 0;  // from the layer's base
  uint64_t length = 0;
};

// The blocks a prefill (or encoder) node has promised to readers, and the only
// judge of what may be read. Blocks go back through `on_return` exactly once:
// by release, by expiry, or after the last read in flight when either came
// while bytes were moving.
// Thread safety: any thread. Callbacks run without the table's lock, in the
// thread whose call caused them.
class LeaseTable {
 public:
  struct Options {
    std::chrono::milliseconds ttl{30000};  // since creation or the last progress
    Clock clock = &std::chrono::steady_clock::now;
    uint64_t first_epoch = 0;  // 0 = drawn at random, so no earlier process used it
  };
  using OnReturn = std::function<void(LeaseRef, LeaseBlocks)>;

  // REQUIRES: layout.Validate().ok()
  LeaseTable(KvLayout layout, Options options, OnReturn on_return);
  // Blocks still under a lease are not returned: their owner goes down too.
  ~LeaseTable() = default;

  // ---- The owner ----
  // Puts `blocks` under a new lease in state Filling. InvalidArgument when a
  // block is outside the pool or tables and groups differ in number.
  Status Create(LeaseBlocks blocks, int32_t num_tokens, LeaseRef* out);
  // Layers [0, layers_done) of all tokens are written: readers waiting for them
  // may go on.
  Status MarkLayersDone(LeaseRef lease, int32_t layers_done);
  // All layers of tokens [0, tokens_done) are written.
  Status MarkTokensDone(LeaseRef lease, int32_t tokens_done);
  // Ends the lease: the reader's ack. Refused when it already ended.
  Status Release(LeaseRef lease);
  // As Release, where the owner wants its blocks back.
  Status Abort(LeaseRef lease);
  // Ends every lease past its TTL; returns how many ended.
  int32_t Expire();

  // ---- The reader's side of the owner's transport ----
  // ResourceExhausted while fewer tokens and fewer layers are written than
  // `at_least` says.
  Status Describe(LeaseRef lease, LeaseProgress at_least, LeaseInfo* out);
  // Pins the lease and turns `ranges` into addresses. PermissionDenied: ended,
  // wrong epoch, or a range not wholly inside leased blocks. ResourceExhausted:
  // `layer` of these blocks is not written yet. On OK the caller owes one EndRead.
  Status BeginRead(LeaseRef lease, int32_t layer, std::span<const LayerRange> ranges,
                   std::vector<MemoryRange>* out);
  void EndRead(LeaseRef lease);
  // A peer was refused before it named a lease.
  void CountRefusal(LeaseRefusal reason);

  // `listener` runs after anything a waiting reader may care about.
  // Returns a token for RemoveListener.
  int32_t AddListener(std::function<void()> listener);
  void RemoveListener(int32_t token);

  [[nodiscard]] const KvLayout& layout() const { return layout_; }
  // Leases not yet Released or Expired.
  [[nodiscard]] int32_t num_live() const;
  // Since the table was made.
  [[nodiscard]] LeaseCounters counters() const;

 private:
  struct Run {  // neighbouring blocks, ascending
    int32_t first = 0;
    int32_t last = 0;
  };
  struct Entry {
    uint64_t epoch = 0;
    LeaseState state = LeaseState::kReleased;
    int32_t num_readers = 0;
    int32_t num_tokens = 0;
    LeaseProgress done;
    TimePoint expiry;
    LeaseBlocks blocks;
    std::vector<std::vector<Run>> runs;       // one list per group
    std::vector<std::vector<Run>> done_runs;  // of blocks written in every layer
    std::vector<size_t> done_blocks;          // how many of each table they cover
  };
  struct Returned {
    LeaseRef lease;
    LeaseBlocks blocks;
  };

  Status Find(LeaseRef lease, size_t* index) const;
  // As Find, for a reader: counts what it refuses.
  Status FindForReader(LeaseRef lease, size_t* index);
  Status Refuse(LeaseRefusal reason, std::string message);
  Status End(LeaseRef lease, uint64_t LeaseCounters::*counter);
  // Sets what is written, and what that makes of the lease.
  Status Advance(size_t index, LeaseProgress done);
  void AddDoneBlocks(Entry* entry) const;
  Status Apply(size_t index, LeaseAction action, std::vector<Returned>* returned);
  Status CheckBlocks(const LeaseBlocks& blocks) const;
  static std::vector<Run> MakeRuns(std::vector<BlockId> blocks);
  static std::vector<Run> MergeRuns(const std::vector<Run>& a, const std::vector<Run>& b);
  [[nodiscard]] bool Covers(const std::vector<Run>& runs, uint64_t block_bytes,
                            const LayerRange& range) const;
  void Notify(std::vector<Returned> returned);

  [[nodiscard]] int32_t num_layers() const { return static_cast<int32_t>(layout_.layers.size()); }

  const KvLayout layout_;
  const Options options_;
  const OnReturn on_return_;

  mutable std::mutex mutex_;
  uint64_t next_epoch_;
  std::vector<Entry> entries_;  // index = LeaseRef::id
  std::vector<uint64_t> free_ids_;
  LeaseCounters counters_;
  std::mutex listener_mutex_;  // held while listeners run, so RemoveListener waits for them
  std::vector<std::pair<int32_t, std::function<void()>>> listeners_;
  int32_t next_listener_ = 0;
};

}  // namespace dlcore

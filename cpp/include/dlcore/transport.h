#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dlcore/status.h"
#include "dlcore/types.h"

// How KV blocks (or image embeddings) move from the node that computed them to
// the node that uses them. The owner puts blocks under a lease; a reader pulls
// leased bytes; nothing outside a lease can be read. docs/disaggregation.md has
// the protocol and the failure table.
namespace dlcore {

using TimePoint = std::chrono::steady_clock::time_point;
using Clock = std::function<TimePoint()>;

// ---- What a pool looks like -------------------------------------------------

// One kind of cache in a pool. A block of one layer is laid out
// [num_planes, kv heads of this rank, block_size, bytes_per_head] bytes:
//   K/V cache        num_planes 2, one head per KV head
//   MLA latent       num_planes 1, num_kv_heads 1, bytes_per_head = latent dim * itemsize
//   image embedding  num_planes 1, num_kv_heads 1, bytes_per_head = hidden size * itemsize
struct KvGroup {
  int32_t block_size = 0;  // tokens
  int32_t num_blocks = 0;
  int32_t num_planes = 2;
  int32_t num_kv_heads = 1;  // of the whole model, over all TP ranks
  int32_t bytes_per_head = 0;

  friend bool operator==(const KvGroup&, const KvGroup&) = default;
};

struct KvLayer {
  int32_t group = 0;  // index into KvLayout::groups
  uint64_t base = 0;  // address of block 0; 0 in a layout that came from a peer

  friend bool operator==(const KvLayer&, const KvLayer&) = default;
};

// A pool as one TP rank holds it. Heads are sharded in order: rank r of n holds
// heads [r*H/n, (r+1)*H/n); with more ranks than heads each head is held by
// n/H neighbouring ranks.
struct KvLayout {
  int32_t tp_size = 1;
  int32_t tp_rank = 0;
  std::vector<KvGroup> groups;
  std::vector<KvLayer> layers;  // in the order the model writes them

  // OK, or InvalidArgument naming the field. Bounds every count, so a layout
  // from a peer that validates is safe to compute with.
  [[nodiscard]] Status Validate() const;
  // Heads of group `g` this rank holds.
  [[nodiscard]] int32_t first_head(int32_t g) const;
  [[nodiscard]] int32_t num_local_heads(int32_t g) const;
  [[nodiscard]] uint64_t bytes_per_block(int32_t g) const;

  friend bool operator==(const KvLayout&, const KvLayout&) = default;
};

// ---- Leases -----------------------------------------------------------------

// Names a lease. `epoch` is unique to it, so a name kept too long never fits
// the lease that has since taken its place.
struct LeaseRef {
  uint64_t id = 0;
  uint64_t epoch = 0;

  friend bool operator==(const LeaseRef&, const LeaseRef&) = default;
};

// The block table of each cache group, in token order.
using LeaseBlocks = std::vector<std::vector<BlockId>>;

// How much of a lease is written: every layer of tokens [0, tokens), and layers
// [0, layers) of every token. A block may be read once all its tokens are written
// (in the layer read), or the lease's last token is.
struct LeaseProgress {
  int32_t tokens = 0;
  int32_t layers = 0;

  friend bool operator==(const LeaseProgress&, const LeaseProgress&) = default;
};

// What a reader learns when it opens a lease.
struct LeaseInfo {
  KvLayout layout;  // of the owner's pool; layer bases are 0
  LeaseBlocks blocks;
  int32_t num_tokens = 0;
  LeaseProgress done;  // may be read without waiting
};

// ---- Reading ----------------------------------------------------------------

// Bytes of one layer: `remote_offset` from the layer's base in the owner's pool
// to `local_address` in the reader's.
struct ReadRange {
  uint64_t remote_offset = 0;
  uint64_t local_address = 0;
  uint64_t length = 0;
};

struct TransportEvent {
  enum class Kind : uint8_t { kLeaseOpened, kReadDone };
  Kind kind = Kind::kReadDone;
  uint64_t tag = 0;
  Status status;
  LeaseInfo lease;  // kLeaseOpened and ok
};

// One connection to one owner. Every call returns at once; the work happens on
// the transport's own thread and ends in exactly one event per OpenLease and
// per Read. Until a read's event is polled its local memory may be written;
// after that it never is, whatever the event's status.
// Thread safety: any thread.
class TransportClient {
 public:
  virtual ~TransportClient() = default;
  // Answers once as many tokens, or as many layers, are written as `at_least` says.
  virtual void OpenLease(uint64_t tag, LeaseRef lease, LeaseProgress at_least,
                         TimePoint deadline) = 0;
  // Waits at the owner until the ranges are written in `layer`, then reads them all.
  virtual void Read(uint64_t tag, LeaseRef lease, int32_t layer, std::vector<ReadRange> ranges,
                    TimePoint deadline) = 0;
  // Ends what was started under `tag` (Unavailable) unless it already ended.
  virtual void Cancel(uint64_t tag) = 0;
  // Tells the owner that the lease is no longer needed. Best effort: a lost
  // message costs the owner its TTL.
  virtual void Release(LeaseRef lease) = 0;
  // Appends what happened since the last call.
  virtual void Poll(std::vector<TransportEvent>* out) = 0;
};

// ---- Migrations ---------------------------------------------------------------

// One TP rank of the node that holds the KV.
struct MigrationSource {
  std::string endpoint;  // chosen with ChooseEndpoint
  LeaseRef lease;
};

// "Bring this sequence's KV here." Built from a request's kv_transfer_params.
struct MigrationRequest {
  RequestId id;
  std::vector<MigrationSource> sources;  // one per TP rank of the owner, in rank order
  LeaseBlocks local_blocks;              // reserved for the sequence, one table per cache group
  int32_t first_token = 0;               // tokens before it are cached here already
  int32_t num_tokens = 0;                // tokens [first_token, num_tokens) are pulled
  // The migration fails when nothing was written or read for so long.
  std::chrono::milliseconds timeout{20000};
  // Whether completion releases the leases. With several local TP ranks reading
  // one lease, only whoever knows that all are done may: see KvMigrator::Release.
  bool release_when_done = true;
};

struct MigrationEvent {
  RequestId id;
  Status status;  // OK = Completed; otherwise why it failed, for the router
  uint64_t bytes = 0;
};

// ---- Serving ------------------------------------------------------------------

// Serves leased memory to authenticated readers until destroyed.
class TransportServer {
 public:
  virtual ~TransportServer() = default;
  // What a reader connects to, "tcp://127.0.0.1:40123".
  [[nodiscard]] virtual std::string endpoint() const = 0;
};

class LeaseTable;   // transport/lease_table.h
class PoolMemory;   // transport/pool_memory.h
class FrameFilter;  // transport/frame_socket.h: fault injection

struct TransportServerOptions {
  std::string key;                  // the deployment's secret, at least 16 bytes
  std::string host = "127.0.0.1";   // address to listen on (tcp, dlslime)
  uint16_t port = 0;                // 0 = any free one
  std::string socket_dir = "/tmp";  // where Unix sockets go (shm, cuda_ipc)
  std::string device;               // RDMA device, empty = the first with an active port
  int32_t max_connections = 256;
  std::chrono::milliseconds handshake_timeout{2000};
  std::chrono::milliseconds stall_timeout{
      10000};                    // a reader that takes nothing for so long is dropped
  LeaseTable* leases = nullptr;  // must outlive the server
  PoolMemory* memory = nullptr;  // how the pool's bytes are reached; must outlive the server
  FrameFilter* filter = nullptr;
};

struct TransportClientOptions {
  std::string key;
  std::string device;  // RDMA device, as above
  std::chrono::milliseconds connect_timeout{2000};
  std::chrono::milliseconds stall_timeout{2000};  // reply overdue by so long: connection dropped
  PoolMemory* memory = nullptr;    // how local addresses are written; must outlive the client
  std::function<void()> on_event;  // called from the transport's thread when Poll has something
  FrameFilter* filter = nullptr;
};

}  // namespace dlcore

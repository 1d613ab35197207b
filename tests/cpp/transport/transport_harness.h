#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "dlcore/transport.h"
#include "gtest/gtest.h"
#include "tests/cpp/transport/gpu_memory.h"
#include "transport/copy_plan.h"
#include "transport/frame_socket.h"
#include "transport/lease_table.h"
#include "transport/pool_memory.h"
#include "transport/registry.h"

// An owner with a pool of known bytes and readers of it, over any transport. On
// a machine with GPUs both sides' memory belongs to GPUs (gpu_memory.h).
namespace dlcore::testing_harness {

using std::chrono::milliseconds;
using std::chrono::seconds;

inline constexpr char kKey[] = "a deployment key of many bytes";
// Enough for many handshakes at once on an emulated machine, where one over RDMA takes
// tenths of a second.
inline constexpr milliseconds kSlowMachine{10000};

inline TimePoint In(milliseconds delay) { return std::chrono::steady_clock::now() + delay; }

// Three K/V layers and an image-embedding table, in one pool.
inline KvLayout MixedLayout(int32_t num_blocks) {
  KvLayout layout;
  layout.groups = {{.block_size = 16,
                    .num_blocks = num_blocks,
                    .num_planes = 2,
                    .num_kv_heads = 2,
                    .bytes_per_head = 64},
                   {.block_size = 4,
                    .num_blocks = num_blocks,
                    .num_planes = 1,
                    .num_kv_heads = 1,
                    .bytes_per_head = 512}};
  layout.layers = {{0, 0}, {0, 0}, {1, 0}, {0, 0}};
  return layout;
}

// Pool bytes in host memory, and the law that nothing outside them, or outside
// what is leased, is ever touched.
class Pool final : public PoolMemory {
 public:
  explicit Pool(KvLayout layout, Side side = Side::kReader, uint64_t seed = 0)
      : layout_(std::move(layout)), memory_(MemoryOf(side)) {
    std::mt19937_64 engine(seed);
    for (KvLayer& layer : layout_.layers) {
      auto& bytes = layers_.emplace_back(
          layout_.bytes_per_block(layer.group) *
          static_cast<size_t>(layout_.groups[static_cast<size_t>(layer.group)].num_blocks));
      if (seed != 0) {
        for (uint8_t& b : bytes) b = static_cast<uint8_t>(engine());
      }
      layer.base = reinterpret_cast<uint64_t>(bytes.data());
    }
  }
  [[nodiscard]] const KvLayout& layout() const { return layout_; }
  [[nodiscard]] Bytes& layer(size_t index) { return layers_[index]; }

  // Bytes a Gather may touch from now on; ranges of whole blocks.
  void AllowOnly(const LeaseBlocks& blocks) {
    const std::lock_guard lock(mutex_);
    audited_ = true;
    allowed_.assign(layers_.size(), {});
    for (size_t i = 0; i < layers_.size(); ++i) {
      const int32_t group = layout_.layers[i].group;
      const uint64_t size = layout_.bytes_per_block(group);
      allowed_[i].resize(layers_[i].size() / size);
      for (const BlockId b : blocks[static_cast<size_t>(group)]) {
        allowed_[i][static_cast<size_t>(b.value)] = true;
      }
    }
  }
  [[nodiscard]] int64_t violations() const { return violations_; }
  // Scatters done so far: pieces of reads that have arrived.
  [[nodiscard]] int64_t scatters() const { return scatters_; }

  Status Gather(std::span<const MemoryRange> from, std::byte* to) override {
    for (const MemoryRange& range : from) {
      if (!Allowed(range)) ++violations_;
    }
    return memory_.Gather(from, to);
  }
  Status Scatter(const std::byte* from, std::span<const MemoryRange> to) override {
    const Status s = memory_.Scatter(from, to);
    ++scatters_;
    return s;
  }
  [[nodiscard]] int32_t cuda_device() const override { return memory_.cuda_device(); }
  void Pin(std::span<std::byte> bytes) override { memory_.Pin(bytes); }
  void Unpin(std::span<std::byte> bytes) override { memory_.Unpin(bytes); }

 private:
  bool Allowed(const MemoryRange& range) {
    const std::lock_guard lock(mutex_);
    if (!audited_) return true;
    for (size_t i = 0; i < layers_.size(); ++i) {
      const uint64_t offset = range.address - layout_.layers[i].base;
      if (offset >= layers_[i].size()) continue;
      if (range.length > layers_[i].size() - offset) return false;
      const uint64_t size = layout_.bytes_per_block(layout_.layers[i].group);
      for (uint64_t b = offset / size; b <= (offset + range.length - 1) / size; ++b) {
        if (!allowed_[i][b]) return false;
      }
      return true;
    }
    return false;
  }

  KvLayout layout_;
  PoolMemory& memory_;
  std::vector<Bytes> layers_;
  std::mutex mutex_;
  bool audited_ = false;
  std::vector<std::vector<bool>> allowed_;
  std::atomic<int64_t> violations_{0};
  std::atomic<int64_t> scatters_{0};
};

inline LeaseBlocks Tables(std::vector<int32_t> kv, std::vector<int32_t> embeddings) {
  LeaseBlocks blocks(2);
  for (const int32_t id : kv) blocks[0].emplace_back(id);
  for (const int32_t id : embeddings) blocks[1].emplace_back(id);
  return blocks;
}

// The node that owns a pool and serves it.
class Owner {
 public:
  struct Settings {
    KvLayout layout = MixedLayout(32);
    milliseconds ttl{60000};
    std::string key = kKey;
    FrameFilter* filter = nullptr;
    milliseconds stall_timeout{10000};
  };

  explicit Owner(std::string transport) : Owner(std::move(transport), Settings{}) {}
  Owner(std::string transport, Settings settings)
      : pool(settings.layout, Side::kOwner, 42),
        leases(pool.layout(), {.ttl = settings.ttl}, [this](LeaseRef, const LeaseBlocks& blocks) {
          ++returned;
          blocks_returned += static_cast<int64_t>(blocks[0].size());
        }) {
    options.key = settings.key;
    options.leases = &leases;
    options.memory = &pool;
    options.filter = settings.filter;
    options.handshake_timeout = kSlowMachine;
    options.stall_timeout = settings.stall_timeout;
    const Status s = NewTransportServer(transport, options, &server);
    EXPECT_TRUE(s.ok()) << s.message();
  }

  LeaseRef Lease(const LeaseBlocks& blocks, int32_t layers_done = -1) {
    LeaseRef lease;
    EXPECT_TRUE(leases.Create(blocks, 16, &lease).ok());
    const int32_t all = static_cast<int32_t>(pool.layout().layers.size());
    if (layers_done != 0) {
      EXPECT_TRUE(leases.MarkLayersDone(lease, layers_done < 0 ? all : layers_done).ok());
    }
    return lease;
  }

  Pool pool;
  std::atomic<int32_t> returned{0};
  std::atomic<int64_t> blocks_returned{0};
  LeaseTable leases;
  TransportServerOptions options;
  std::unique_ptr<TransportServer> server;
};

// A node that reads, and waits for events.
class Reader {
 public:
  using NewClient =
      std::function<Status(const TransportClientOptions&, std::unique_ptr<TransportClient>*)>;

  explicit Reader(const std::string& endpoint, std::string key = kKey,
                  FrameFilter* filter = nullptr, milliseconds stall_timeout = milliseconds(2000))
      : Reader(
            [&](const TransportClientOptions& options, std::unique_ptr<TransportClient>* out) {
              return NewTransportClient(endpoint, options, out);
            },
            std::move(key), filter, stall_timeout) {}
  Reader(const NewClient& new_client, std::string key, FrameFilter* filter,
         milliseconds stall_timeout) {
    TransportClientOptions options;
    options.key = std::move(key);
    options.memory = &MemoryOf(Side::kReader);
    options.filter = filter;
    options.connect_timeout = kSlowMachine;
    options.stall_timeout = stall_timeout;
    options.on_event = [this] {
      const std::lock_guard lock(mutex_);
      signalled_ = true;
      changed_.notify_all();
    };
    const Status s = new_client(options, &client);
    EXPECT_TRUE(s.ok()) << s.message();
  }

  // The event of `tag`; fails the test when none comes in time.
  TransportEvent Wait(uint64_t tag, milliseconds limit = seconds(30)) {
    const TimePoint deadline = In(limit);
    while (std::chrono::steady_clock::now() < deadline) {
      Collect();
      if (const auto it = events_.find(tag); it != events_.end()) {
        TransportEvent event = std::move(it->second);
        events_.erase(it);
        return event;
      }
      std::unique_lock lock(mutex_);
      changed_.wait_until(lock, deadline, [this] { return signalled_; });
      signalled_ = false;
    }
    ADD_FAILURE() << "no event for tag " << tag;
    return {};
  }
  TransportEvent Open(LeaseRef lease, LeaseProgress at_least = {},
                      milliseconds limit = seconds(20)) {
    const uint64_t tag = next_tag_++;
    client->OpenLease(tag, lease, at_least, In(limit));
    return Wait(tag);
  }
  Status Read(LeaseRef lease, int32_t layer, std::vector<ReadRange> ranges,
              milliseconds limit = seconds(20)) {
    const uint64_t tag = next_tag_++;
    client->Read(tag, lease, layer, std::move(ranges), In(limit));
    return Wait(tag).status;
  }
  uint64_t NextTag() { return next_tag_++; }

 private:
  void Collect() {
    std::vector<TransportEvent> events;
    client->Poll(&events);
    for (TransportEvent& event : events) {
      EXPECT_TRUE(seen_.insert(event.tag).second) << "two events for tag " << event.tag;
      events_[event.tag] = std::move(event);
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool signalled_ = false;
  uint64_t next_tag_ = 1;
  std::map<uint64_t, TransportEvent> events_;
  std::set<uint64_t> seen_;

 public:
  std::unique_ptr<TransportClient> client;  // last: its thread uses the members above
};

inline ReadRange RangeTo(uint64_t offset, void* local, uint64_t length) {
  return {offset, reinterpret_cast<uint64_t>(local), length};
}

// A filter made of a function.
class Filter final : public FrameFilter {
 public:
  using Function = std::function<FrameFault(FrameType, std::vector<std::byte>*)>;
  explicit Filter(Function function) : function_(std::move(function)) {}
  FrameFault OnSend(FrameType type, std::vector<std::byte>* body) override {
    return function_(type, body);
  }

 private:
  Function function_;
};

// Every transport this machine can run.
inline std::vector<std::string> AvailableTransports() {
  std::vector<std::string> names;
  for (const TransportFactory* factory : Transports()) {
    const bool reaches_pool = !factory->device_memory || NumGpus() > 0;
    if (reaches_pool && factory->available().ok()) names.emplace_back(factory->name);
  }
  return names;
}

}  // namespace dlcore::testing_harness

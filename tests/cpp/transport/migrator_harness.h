#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/cpp/transport/transport_harness.h"
#include "transport/kv_migrator.h"

// The ranks of an owner that hold one sequence of known content, and a decode
// rank that pulls it.
namespace dlcore::testing_harness {
inline constexpr int32_t kHeads = 4;
inline constexpr int32_t kBytesPerHead = 24;
inline constexpr int32_t kLayers = 3;

// Two groups: GQA heads sharded by TP, and an MLA latent every rank holds.
inline KvLayout ModelLayout(int32_t block_size, int32_t num_blocks, int32_t tp_size,
                            int32_t tp_rank) {
  KvLayout layout;
  layout.tp_size = tp_size;
  layout.tp_rank = tp_rank;
  layout.groups = {{.block_size = block_size,
                    .num_blocks = num_blocks,
                    .num_planes = 2,
                    .num_kv_heads = kHeads,
                    .bytes_per_head = kBytesPerHead},
                   {.block_size = block_size,
                    .num_blocks = num_blocks,
                    .num_planes = 1,
                    .num_kv_heads = 1,
                    .bytes_per_head = 40}};
  for (int32_t i = 0; i < kLayers; ++i) layout.layers.push_back({i == 1 ? 1 : 0, 0});
  return layout;
}

inline uint8_t Content(size_t layer, int32_t token, int32_t plane, int32_t head, int32_t byte) {
  return static_cast<uint8_t>(
      1 +
      (static_cast<int32_t>(layer) * 77 + token * 131 + plane * 31 + head * 17 + byte * 7) % 255);
}

// Calls visit(byte reference, layer, token, plane, head, byte) for all that this
// rank holds of the sequence's tokens.
template <class Visit>
void ForEach(Pool* pool, const LeaseBlocks& tables, int32_t first, int32_t end, Visit visit) {
  const KvLayout& layout = pool->layout();
  for (size_t l = 0; l < layout.layers.size(); ++l) {
    const int32_t group_index = layout.layers[l].group;
    const KvGroup& g = layout.groups[static_cast<size_t>(group_index)];
    const auto& table = tables[static_cast<size_t>(group_index)];
    const int32_t heads = layout.num_local_heads(group_index);
    for (int32_t t = first; t < end; ++t) {
      for (int32_t p = 0; p < g.num_planes; ++p) {
        for (int32_t h = 0; h < heads; ++h) {
          for (int32_t b = 0; b < g.bytes_per_head; ++b) {
            const int64_t block = table[static_cast<size_t>(t / g.block_size)].value;
            const int64_t row =
                ((block * g.num_planes + p) * heads + h) * g.block_size + t % g.block_size;
            visit(pool->layer(l)[static_cast<size_t>(row * g.bytes_per_head + b)], l, t, p,
                  h + layout.first_head(group_index), b);
          }
        }
      }
    }
  }
}

inline LeaseBlocks ScatteredTables(int32_t count, int32_t num_blocks, int32_t stride) {
  LeaseBlocks tables(2);
  for (int32_t i = 0; i < count; ++i) {
    tables[0].emplace_back(i * stride % num_blocks);
    tables[1].emplace_back((num_blocks - 1) - i);
  }
  return tables;
}

struct Settings {
  std::string transport;
  int32_t owner_tp = 1;
  int32_t owner_block_size = 4;
  FrameFilter* owner_filter = nullptr;
  milliseconds ttl{60000};
  int32_t tokens = 50;
};

// The owner's ranks, each with one lease on the same sequence.
class OwnerGroup {
 public:
  explicit OwnerGroup(const Settings& settings) : settings_(settings) {
    tables_ = ScatteredTables(
        (settings.tokens + settings.owner_block_size - 1) / settings.owner_block_size, 31, 3);
    for (int32_t rank = 0; rank < settings.owner_tp; ++rank) {
      Owner::Settings owner;
      owner.layout = ModelLayout(settings.owner_block_size, 31, settings.owner_tp, rank);
      owner.filter = settings.owner_filter;
      owner.ttl = settings.ttl;
      ranks_.push_back(std::make_unique<Owner>(settings.transport, owner));
      ForEach(&ranks_.back()->pool, tables_, 0, settings.tokens,
              [](uint8_t& byte, size_t l, int32_t t, int32_t p, int32_t h, int32_t b) {
                byte = Content(l, t, p, h, b);
              });
    }
  }
  std::vector<MigrationSource> Lease(int32_t layers_done = kLayers) {
    std::vector<MigrationSource> sources;
    for (auto& rank : ranks_) {
      LeaseRef lease;
      EXPECT_TRUE(rank->leases.Create(tables_, settings_.tokens, &lease).ok());
      if (layers_done > 0) {
        EXPECT_TRUE(rank->leases.MarkLayersDone(lease, layers_done).ok());
      }
      sources.push_back({rank->server->endpoint(), lease});
    }
    return sources;
  }
  Owner& rank(size_t index) { return *ranks_[index]; }
  [[nodiscard]] const LeaseBlocks& tables() const { return tables_; }
  [[nodiscard]] bool AllReturned(int32_t leases) const {
    return std::all_of(ranks_.begin(), ranks_.end(),
                       [&](const auto& rank) { return rank->returned == leases; });
  }

 private:
  Settings settings_;
  LeaseBlocks tables_;
  std::vector<std::unique_ptr<Owner>> ranks_;
};

// A decode rank.
class Decoder {
 public:
  // Gives up a connection that was silent for `patience`.
  explicit Decoder(KvLayout layout, milliseconds patience = kSlowMachine,
                   FrameFilter* filter = nullptr)
      : pool(std::move(layout)), migrator(MakeOptions(patience, filter)) {}

  MigrationEvent Wait(milliseconds limit = seconds(30)) {
    const TimePoint deadline = In(limit);
    while (std::chrono::steady_clock::now() < deadline) {
      migrator.PollCompleted(&events_);
      if (!events_.empty()) {
        MigrationEvent event = events_.front();
        events_.erase(events_.begin());
        return event;
      }
      std::this_thread::sleep_for(milliseconds(1));
    }
    ADD_FAILURE() << "no migration event";
    return {};
  }
  MigrationRequest Request(uint64_t id, std::vector<MigrationSource> sources, int32_t tokens,
                           milliseconds limit = seconds(20)) {
    MigrationRequest request;
    request.id = RequestId(id);
    request.sources = std::move(sources);
    const int32_t size = pool.layout().groups[0].block_size;
    request.local_blocks =
        ScatteredTables((tokens + size - 1) / size, pool.layout().groups[0].num_blocks, 5);
    request.num_tokens = tokens;
    request.timeout = limit;
    return request;
  }
  // Whether the first layers' KV of the first tokens has come. Copies between GPUs
  // pass PoolMemory by, so there the bytes tell.
  [[nodiscard]] bool Arrived(const LeaseBlocks& tables, int32_t num_tokens, size_t num_layers) {
    if (pool.cuda_device() < 0) return static_cast<size_t>(pool.scatters()) >= num_layers;
    bool all = true;
    ForEach(&pool, tables, 0, num_tokens,
            [&](const uint8_t& byte, size_t l, int32_t t, int32_t p, int32_t h, int32_t b) {
              all = all && (l >= num_layers || byte == Content(l, t, p, h, b));
            });
    return all;
  }
  void ExpectContent(const LeaseBlocks& tables, int32_t first, int32_t end) {
    ForEach(&pool, tables, first, end,
            [](const uint8_t& byte, size_t l, int32_t t, int32_t p, int32_t h, int32_t b) {
              ASSERT_EQ(byte, Content(l, t, p, h, b)) << "layer " << l << " token " << t;
            });
  }

  Pool pool;
  KvMigrator migrator;

 private:
  KvMigrator::Options MakeOptions(milliseconds patience, FrameFilter* filter) {
    KvMigrator::Options options;
    options.layout = pool.layout();
    options.transport.key = kKey;
    options.transport.memory = &pool;
    options.transport.filter = filter;
    options.transport.connect_timeout = patience;
    options.transport.stall_timeout = patience;
    return options;
  }
  std::vector<MigrationEvent> events_;
};

inline bool Eventually(const std::function<bool()>& condition, milliseconds limit = seconds(10)) {
  const TimePoint deadline = In(limit);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(milliseconds(2));
  }
  return true;
}

}  // namespace dlcore::testing_harness

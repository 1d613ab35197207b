#include "transport/kv_migrator.h"

#include <numeric>

#include "tests/cpp/transport/transport_harness.h"

namespace dlcore::testing_harness {
namespace {

constexpr int32_t kHeads = 4;
constexpr int32_t kBytesPerHead = 24;
constexpr int32_t kLayers = 3;

// Two groups: GQA heads sharded by TP, and an MLA latent every rank holds.
KvLayout ModelLayout(int32_t block_size, int32_t num_blocks, int32_t tp_size, int32_t tp_rank) {
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

uint8_t Content(size_t layer, int32_t token, int32_t plane, int32_t head, int32_t byte) {
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

LeaseBlocks ScatteredTables(int32_t count, int32_t num_blocks, int32_t stride) {
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
      EXPECT_TRUE(rank->leases.MarkLayersDone(lease, layers_done).ok());
      sources.push_back({rank->server->endpoint(), lease});
    }
    return sources;
  }
  Owner& rank(size_t index) { return *ranks_[index]; }
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
  explicit Decoder(KvLayout layout, FrameFilter* filter = nullptr)
      : pool(std::move(layout)), migrator(MakeOptions(filter)) {}

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
    request.deadline = In(limit);
    return request;
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
  KvMigrator::Options MakeOptions(FrameFilter* filter) {
    KvMigrator::Options options;
    options.layout = pool.layout();
    options.transport.key = kKey;
    options.transport.memory = &pool;
    options.transport.filter = filter;
    options.transport.connect_timeout = milliseconds(300);
    options.transport.stall_timeout = milliseconds(300);
    return options;
  }
  std::vector<MigrationEvent> events_;
};

bool Eventually(const std::function<bool()>& condition, milliseconds limit = seconds(10)) {
  const TimePoint deadline = In(limit);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(milliseconds(2));
  }
  return true;
}

class KvMigratorTest : public testing::TestWithParam<std::string> {};

TEST_P(KvMigratorTest, MovesKvBetweenAnyTpDegreesAndBlockSizes) {
  for (const int32_t owner_tp : {1, 2, 4}) {
    for (const int32_t local_tp : {1, 2, 8}) {
      for (const int32_t block_size : {4, 8, 3}) {
        OwnerGroup owners({.transport = GetParam(), .owner_tp = owner_tp});
        Decoder decoder(ModelLayout(block_size, 29, local_tp, local_tp - 1));
        MigrationRequest request = decoder.Request(7, owners.Lease(), 50);
        const LeaseBlocks tables = request.local_blocks;
        decoder.migrator.Post(std::move(request));
        const MigrationEvent event = decoder.Wait();
        ASSERT_TRUE(event.status.ok()) << event.status.message();
        EXPECT_EQ(event.id, RequestId(7));
        decoder.ExpectContent(tables, 0, 50);
        EXPECT_TRUE(Eventually([&] { return owners.AllReturned(1); }));
      }
    }
  }
}

TEST_P(KvMigratorTest, PullsFinishedLayersWhileTheOwnerStillFills) {
  OwnerGroup owners({.transport = GetParam()});
  Decoder decoder(ModelLayout(4, 31, 1, 0));
  const auto sources = owners.Lease(1);
  MigrationRequest request = decoder.Request(1, sources, 50);
  const LeaseBlocks tables = request.local_blocks;
  decoder.migrator.Post(std::move(request));
  // Layer 0 arrives although the prefill has not finished.
  EXPECT_TRUE(Eventually([&] { return decoder.pool.scatters() == 1; }));
  std::vector<MigrationEvent> events;
  decoder.migrator.PollCompleted(&events);
  EXPECT_TRUE(events.empty());
  ASSERT_TRUE(owners.rank(0).leases.MarkLayersDone(sources[0].lease, 2).ok());
  ASSERT_TRUE(owners.rank(0).leases.MarkLayersDone(sources[0].lease, 3).ok());
  ASSERT_TRUE(decoder.Wait().status.ok());
  decoder.ExpectContent(tables, 0, 50);
}

TEST_P(KvMigratorTest, CachedPrefixIsNotPulled) {
  OwnerGroup owners({.transport = GetParam()});
  Decoder decoder(ModelLayout(4, 31, 1, 0));
  MigrationRequest request = decoder.Request(1, owners.Lease(), 50);
  const LeaseBlocks tables = request.local_blocks;
  request.first_token = 24;
  decoder.migrator.Post(std::move(request));
  ASSERT_TRUE(decoder.Wait().status.ok());
  decoder.ExpectContent(tables, 24, 50);
  ForEach(
      &decoder.pool, tables, 0, 24,
      [](const uint8_t& byte, size_t, int32_t, int32_t, int32_t, int32_t) { ASSERT_EQ(byte, 0); });
}

TEST_P(KvMigratorTest, AbortEndsBothSides) {
  OwnerGroup owners({.transport = GetParam(), .owner_tp = 2});
  Decoder decoder(ModelLayout(4, 31, 1, 0));
  decoder.migrator.Post(decoder.Request(5, owners.Lease(1), 50, seconds(60)));
  std::this_thread::sleep_for(milliseconds(30));
  decoder.migrator.Abort(RequestId(5));
  decoder.migrator.Abort(RequestId(6));  // nobody
  EXPECT_EQ(decoder.Wait(seconds(5)).status.code(), StatusCode::kUnavailable);
  EXPECT_TRUE(Eventually([&] { return owners.AllReturned(1); }));
}

TEST_P(KvMigratorTest, FailureNamesItsReasonAndKeepsTheLeaseForARetry) {
  OwnerGroup owners({.transport = GetParam()});
  Decoder decoder(ModelLayout(4, 31, 1, 0));
  const auto sources = owners.Lease();
  auto wrong = sources;
  wrong[0].lease.epoch += 1;
  decoder.migrator.Post(decoder.Request(1, wrong, 50));
  EXPECT_EQ(decoder.Wait().status.code(), StatusCode::kPermissionDenied);
  decoder.migrator.Post(decoder.Request(2, sources, 51));  // more than the lease holds
  EXPECT_EQ(decoder.Wait().status.code(), StatusCode::kInvalidArgument);
  MigrationRequest short_table = decoder.Request(3, sources, 50);
  short_table.local_blocks[0].resize(2);
  decoder.migrator.Post(std::move(short_table));
  EXPECT_EQ(decoder.Wait().status.code(), StatusCode::kInvalidArgument);
  decoder.migrator.Post(decoder.Request(4, {}, 50));
  EXPECT_EQ(decoder.Wait().status.code(), StatusCode::kInvalidArgument);
  decoder.migrator.Post(decoder.Request(5, {{"carrier-pigeon://x", {}}}, 50));
  EXPECT_EQ(decoder.Wait().status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(owners.rank(0).returned, 0);
  decoder.migrator.Post(decoder.Request(6, sources, 50));
  EXPECT_TRUE(decoder.Wait().status.ok());
}

TEST_P(KvMigratorTest, DeadOwnerFailsTheMigration) {
  OwnerGroup owners({.transport = GetParam()});
  Decoder decoder(ModelLayout(4, 31, 1, 0));
  decoder.migrator.Post(decoder.Request(1, owners.Lease(1), 50, seconds(60)));
  std::this_thread::sleep_for(milliseconds(30));
  owners.rank(0).server.reset();
  EXPECT_EQ(decoder.Wait(seconds(5)).status.code(), StatusCode::kUnavailable);
}

TEST_P(KvMigratorTest, SixtyFourMigrationsShareOneConnection) {
  OwnerGroup owners({.transport = GetParam()});
  Decoder decoder(ModelLayout(4, 31, 1, 0));
  LeaseBlocks tables;
  for (uint64_t i = 0; i < 64; ++i) {
    MigrationRequest request = decoder.Request(i, owners.Lease(), 50);
    tables = request.local_blocks;
    decoder.migrator.Post(std::move(request));
  }
  for (int i = 0; i < 64; ++i) ASSERT_TRUE(decoder.Wait().status.ok());
  decoder.ExpectContent(tables, 0, 50);
  EXPECT_TRUE(Eventually([&] { return owners.AllReturned(64); }));
}

// Counts frames and spoils the one at `target`.
class OneFault final : public FrameFilter {
 public:
  enum class Kind { kDelay, kDrop, kTruncate, kDisconnect };
  OneFault(Kind kind, int32_t target) : kind_(kind), target_(target) {}
  FrameFault OnSend(FrameType, std::vector<std::byte>*) override {
    if (count_++ != target_) return FrameFault::kNone;
    switch (kind_) {
      case Kind::kDelay:
        std::this_thread::sleep_for(milliseconds(30));
        return FrameFault::kNone;
      case Kind::kDrop:
        return FrameFault::kDrop;
      case Kind::kTruncate:
        return FrameFault::kTruncate;
      case Kind::kDisconnect:
        return FrameFault::kDisconnect;
    }
    return FrameFault::kNone;
  }
  [[nodiscard]] bool reached() const { return count_ > target_; }

 private:
  Kind kind_;
  int32_t target_;
  std::atomic<int32_t> count_{0};
};

// One migration with one fault. Whatever happens: one event in time, right bytes
// if it completed, a retry that works, and every block back.
void RunWithFault(const std::string& transport, OneFault::Kind kind, int32_t target, bool at_owner,
                  bool* reached) {
  OneFault fault(kind, target);
  OwnerGroup owners({.transport = transport,
                     .owner_filter = at_owner ? &fault : nullptr,
                     .ttl = milliseconds(1500)});
  Decoder decoder(ModelLayout(8, 31, 1, 0), at_owner ? nullptr : &fault);
  const auto sources = owners.Lease();
  MigrationRequest request = decoder.Request(1, sources, 50, milliseconds(300));
  const LeaseBlocks tables = request.local_blocks;
  decoder.migrator.Post(std::move(request));
  const MigrationEvent event = decoder.Wait(seconds(8));
  if (event.status.ok()) {
    decoder.ExpectContent(tables, 0, 50);
  } else {
    for (const size_t layer : {0, 1, 2}) {
      std::fill(decoder.pool.layer(layer).begin(), decoder.pool.layer(layer).end(), uint8_t{0});
    }
    // The broken connection has to be given up first, and emulated machines are slow.
    MigrationEvent retry = event;
    for (uint64_t id = 2; id < 12 && !retry.status.ok(); ++id) {
      decoder.migrator.Post(decoder.Request(id, owners.Lease(), 50));
      retry = decoder.Wait(seconds(8));
    }
    ASSERT_TRUE(retry.status.ok()) << retry.status.message();
    decoder.ExpectContent(tables, 0, 50);
  }
  EXPECT_TRUE(Eventually([&] { return owners.rank(0).leases.num_live() == 0; }, seconds(5)));
  *reached = fault.reached();
}

void SweepMessages(const std::string& transport, OneFault::Kind kind, bool at_owner) {
  bool reached = true;
  int32_t target = 0;
  for (; reached && target < 32; ++target) {
    SCOPED_TRACE("fault " + std::to_string(static_cast<int>(kind)) + " at message " +
                 std::to_string(target) + (at_owner ? " of the owner" : " of the reader"));
    RunWithFault(transport, kind, target, at_owner, &reached);
  }
  EXPECT_GT(target, 3) << "faults were injected";
  EXPECT_FALSE(reached) << "every message had its turn";
}

TEST_P(KvMigratorTest, SurvivesEveryFaultAtEveryMessage) {
  std::vector<std::thread> sweeps;  // they mostly wait for timeouts: side by side
  for (const OneFault::Kind kind : {OneFault::Kind::kDelay, OneFault::Kind::kDrop,
                                    OneFault::Kind::kTruncate, OneFault::Kind::kDisconnect}) {
    for (const bool at_owner : {true, false}) {
      sweeps.emplace_back([kind, at_owner] { SweepMessages(GetParam(), kind, at_owner); });
    }
  }
  for (std::thread& sweep : sweeps) sweep.join();
}

INSTANTIATE_TEST_SUITE_P(Transports, KvMigratorTest, testing::ValuesIn(AvailableTransports()),
                         [](const auto& param) { return param.param; });

}  // namespace
}  // namespace dlcore::testing_harness

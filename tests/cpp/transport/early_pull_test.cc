// Pulls that start while the owner still fills its lease: what every transport must do.
#include <random>

#include "tests/cpp/transport/migrator_harness.h"

namespace dlcore::testing_harness {
namespace {

class EarlyPull : public testing::TestWithParam<std::string> {};

TEST_P(EarlyPull, BlocksAreReadOnceTheirTokensAreWrittenAndNotBefore) {
  Owner owner(GetParam());
  LeaseRef lease;  // blocks of 16 tokens: [0, 16) in block 4, [16, 20) in block 9
  ASSERT_TRUE(owner.leases.Create(Tables({4, 9}, {}), 20, &lease).ok());
  Reader reader(owner.server->endpoint());
  const uint64_t block = owner.pool.layout().bytes_per_block(0);
  EXPECT_EQ(reader.Open(lease).lease.done, LeaseProgress{});
  Bytes first(block);
  Bytes second(block);
  const uint64_t waiting = reader.NextTag();
  reader.client->Read(waiting, lease, 0, {RangeTo(9 * block, second.data(), block)},
                      In(seconds(20)));
  const uint64_t opening = reader.NextTag();
  reader.client->OpenLease(opening, lease, {1, 1}, In(seconds(20)));
  EXPECT_EQ(
      reader.Read(lease, 0, {RangeTo(4 * block, first.data(), block)}, milliseconds(50)).code(),
      StatusCode::kDeadlineExceeded);
  EXPECT_EQ(first, Bytes(block));
  ASSERT_TRUE(reader.Open(lease).status.ok());  // the owner has seen that the read was given up
  ASSERT_TRUE(owner.leases.MarkTokensDone(lease, 17).ok());
  EXPECT_EQ(reader.Wait(opening).lease.done, (LeaseProgress{17, 0}));
  ASSERT_TRUE(reader.Read(lease, 0, {RangeTo(4 * block, first.data(), block)}).ok());
  EXPECT_EQ(std::memcmp(first.data(), owner.pool.layer(0).data() + 4 * block, block), 0);
  EXPECT_EQ(second, Bytes(block));
  ASSERT_TRUE(owner.leases.MarkTokensDone(lease, 20).ok());
  ASSERT_TRUE(reader.Wait(waiting).status.ok());
  EXPECT_EQ(std::memcmp(second.data(), owner.pool.layer(0).data() + 9 * block, block), 0);
  EXPECT_EQ(owner.leases.counters().early_bytes, block);
}

TEST_P(EarlyPull, HundredsOfLeasesWaitOnOneConnectionWithoutHoldingUpARead) {
  Owner owner(GetParam());
  Reader reader(owner.server->endpoint());
  std::vector<uint64_t> tags;
  std::vector<LeaseRef> leases;
  for (int i = 0; i < 300; ++i) {
    leases.emplace_back();
    ASSERT_TRUE(owner.leases.Create(Tables({i % 32}, {}), 16, &leases.back()).ok());
    tags.push_back(reader.NextTag());
    reader.client->OpenLease(tags.back(), leases.back(), {1, 1}, In(seconds(20)));
  }
  const LeaseRef ready = owner.Lease(Tables({3}, {}));
  const uint64_t block = owner.pool.layout().bytes_per_block(0);
  Bytes local(block);
  ASSERT_TRUE(reader.Read(ready, 0, {RangeTo(3 * block, local.data(), block)}).ok());
  for (const LeaseRef lease : leases) ASSERT_TRUE(owner.leases.MarkTokensDone(lease, 16).ok());
  for (const uint64_t tag : tags) ASSERT_TRUE(reader.Wait(tag).status.ok());
}

// The bytes of tokens not yet written are noise until they are.
void SpoilFrom(OwnerGroup* owners, size_t ranks, const LeaseBlocks& tables, int32_t first,
               int32_t end) {
  for (size_t rank = 0; rank < ranks; ++rank) {
    ForEach(&owners->rank(rank).pool, tables, first, end,
            [](uint8_t& byte, size_t, int32_t, int32_t, int32_t, int32_t) { byte = 0xff; });
  }
}

void WriteLayer(Owner* owner, const LeaseBlocks& tables, int32_t first, int32_t end,
                int32_t layer) {
  ForEach(&owner->pool, tables, first, end,
          [&](uint8_t& byte, size_t l, int32_t t, int32_t p, int32_t h, int32_t b) {
            if (l == static_cast<size_t>(layer)) byte = Content(l, t, p, h, b);
          });
}

// Writes a chunk and tells of it when it is done, or (`by_layers`, the last one) as it is written.
void WriteChunk(Owner* owner, LeaseRef lease, const LeaseBlocks& tables, int32_t first, int32_t end,
                bool by_layers) {
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    WriteLayer(owner, tables, first, end, layer);
    if (!by_layers) continue;
    ASSERT_TRUE(owner->leases.MarkLayersDone(lease, layer + 1).ok());
  }
  if (by_layers) return;
  ASSERT_TRUE(owner->leases.MarkTokensDone(lease, end).ok());
}

TEST_P(EarlyPull, ChunksMoveByteForByteBetweenAnyTpDegreesAndBlockSizes) {
  constexpr int32_t kTokens = 50;
  std::mt19937 engine(3);
  for (const auto& [owner_tp, local_tp] :
       std::vector<std::pair<int32_t, int32_t>>{{1, 1}, {2, 1}, {1, 2}, {4, 2}, {2, 8}}) {
    for (const int32_t block_size : {4, 8, 3}) {
      SCOPED_TRACE("tp " + std::to_string(owner_tp) + " -> " + std::to_string(local_tp) +
                   ", block size 4 -> " + std::to_string(block_size));
      const auto ranks = static_cast<size_t>(owner_tp);
      OwnerGroup owners({.transport = GetParam(), .owner_tp = owner_tp});
      const LeaseBlocks remote = owners.tables();
      SpoilFrom(&owners, ranks, remote, 0, kTokens);
      // Every local rank gets its heads; all pull from the same leases.
      const auto sources = owners.Lease(0);
      std::vector<std::unique_ptr<Decoder>> decoders;
      LeaseBlocks tables;
      for (int32_t rank = 0; rank < local_tp; ++rank) {
        decoders.push_back(std::make_unique<Decoder>(ModelLayout(block_size, 29, local_tp, rank)));
        MigrationRequest request = decoders.back()->Request(7, sources, kTokens);
        request.release_when_done = false;
        tables = request.local_blocks;
        decoders.back()->migrator.Post(std::move(request));
      }
      for (int32_t done = 0; done < kTokens;) {
        const int32_t next = std::min(kTokens, done + std::uniform_int_distribution(1, 20)(engine));
        // Ranks of one owner need not be in step.
        for (size_t rank = 0; rank < ranks; ++rank) {
          const bool by_layers = next == kTokens && engine() % 2 == 0;
          WriteChunk(&owners.rank(rank), sources[rank].lease, remote, done, next, by_layers);
        }
        done = next;
        if (engine() % 2 == 0) std::this_thread::sleep_for(milliseconds(2));
      }
      for (auto& decoder : decoders) {
        const MigrationEvent event = decoder->Wait();
        ASSERT_TRUE(event.status.ok()) << event.status.message();
        decoder->ExpectContent(tables, 0, kTokens);
      }
      decoders.front()->migrator.Release(sources);
      EXPECT_TRUE(Eventually([&] { return owners.AllReturned(1); }));
    }
  }
}

TEST_P(EarlyPull, WhatIsWrittenArrivesBeforeTheRestIs) {
  OwnerGroup owners({.transport = GetParam()});  // blocks of 4 tokens
  Decoder decoder(ModelLayout(4, 31, 1, 0));
  const auto sources = owners.Lease(0);
  MigrationRequest request = decoder.Request(1, sources, 50);
  const LeaseBlocks tables = request.local_blocks;
  decoder.migrator.Post(std::move(request));
  LeaseTable& leases = owners.rank(0).leases;
  ASSERT_TRUE(leases.MarkTokensDone(sources[0].lease, 22).ok());
  ASSERT_TRUE(Eventually([&] { return decoder.Arrived(tables, 20, kLayers); }));
  decoder.ExpectContent(tables, 0, 20);
  ForEach(
      &decoder.pool, tables, 20, 50,
      [](const uint8_t& byte, size_t, int32_t, int32_t, int32_t, int32_t) { ASSERT_EQ(byte, 0); });
  std::vector<MigrationEvent> events;
  decoder.migrator.PollCompleted(&events);
  EXPECT_TRUE(events.empty());
  ASSERT_TRUE(leases.MarkTokensDone(sources[0].lease, 50).ok());
  const MigrationEvent event = decoder.Wait();
  ASSERT_TRUE(event.status.ok()) << event.status.message();
  decoder.ExpectContent(tables, 0, 50);
  const MigrationCounters counters = decoder.migrator.counters();
  EXPECT_EQ(counters.completed, 1U);
  EXPECT_EQ(counters.bytes, event.bytes);
  EXPECT_GT(counters.early_bytes, event.bytes / 3);
  EXPECT_LT(counters.early_bytes, event.bytes / 2);
  EXPECT_EQ(leases.counters().early_bytes, counters.early_bytes);
}

TEST_P(EarlyPull, LayersOfTheLastChunkArriveOneByOneAfterTheChunksBefore) {
  constexpr int32_t kTokens = 50;
  constexpr int32_t kChunk = 22;  // in the middle of a block
  OwnerGroup owners({.transport = GetParam()});
  SpoilFrom(&owners, 1, owners.tables(), 0, kTokens);
  Decoder decoder(ModelLayout(8, 31, 1, 0));
  const auto sources = owners.Lease(0);
  const LeaseRef lease = sources[0].lease;
  Owner& owner = owners.rank(0);
  MigrationRequest request = decoder.Request(1, sources, kTokens - 1);
  const LeaseBlocks tables = request.local_blocks;
  decoder.migrator.Post(std::move(request));
  WriteChunk(&owner, lease, owners.tables(), 0, kChunk, false);
  const auto layer_bytes = [&](int32_t layer, int32_t tokens) {
    const KvLayout& layout = owner.pool.layout();
    const int32_t group = layout.layers[static_cast<size_t>(layer)].group;
    return layout.bytes_per_block(group) / 4 * static_cast<uint64_t>(tokens);  // blocks of 4
  };
  uint64_t served = 0;
  for (int32_t layer = 0; layer < kLayers; ++layer) served += layer_bytes(layer, 20);
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    WriteLayer(&owner, owners.tables(), kChunk, kTokens, layer);
    ASSERT_TRUE(owner.leases.MarkLayersDone(lease, layer + 1).ok());
    served += layer_bytes(layer, kTokens - 1 - 20);
    ASSERT_TRUE(Eventually([&] { return owner.leases.counters().bytes == served; }));
  }
  EXPECT_EQ(owner.leases.counters().early_bytes,
            served - layer_bytes(kLayers - 1, kTokens - 1 - 20));
  const MigrationEvent event = decoder.Wait();
  ASSERT_TRUE(event.status.ok()) << event.status.message();
  decoder.ExpectContent(tables, 0, kTokens - 1);
  EXPECT_EQ(event.bytes, served);
}

TEST_P(EarlyPull, APullThatWantsLessThanTheLeaseEndsWithoutItsLastToken) {
  OwnerGroup owners({.transport = GetParam()});
  Decoder decoder(ModelLayout(8, 31, 1, 0));
  const auto sources = owners.Lease(0);
  MigrationRequest request = decoder.Request(1, sources, 40);
  request.first_token = 12;  // cached here already
  const LeaseBlocks tables = request.local_blocks;
  decoder.migrator.Post(std::move(request));
  ASSERT_TRUE(owners.rank(0).leases.MarkTokensDone(sources[0].lease, 41).ok());
  ASSERT_TRUE(decoder.Wait().status.ok());
  decoder.ExpectContent(tables, 12, 40);
  EXPECT_TRUE(Eventually([&] { return owners.AllReturned(1); }));
}

TEST_P(EarlyPull, TheTimeoutCountsFromTheLastProgress) {
  OwnerGroup owners({.transport = GetParam()});
  Decoder decoder(ModelLayout(4, 31, 1, 0));
  const auto sources = owners.Lease(0);
  decoder.migrator.Post(decoder.Request(1, sources, 50, milliseconds(1000)));
  LeaseTable& leases = owners.rank(0).leases;
  const TimePoint start = std::chrono::steady_clock::now();
  for (const int32_t done : {8, 16, 24, 32, 40}) {
    std::this_thread::sleep_for(milliseconds(300));
    ASSERT_TRUE(leases.MarkTokensDone(sources[0].lease, done).ok());
  }
  EXPECT_EQ(decoder.Wait(seconds(5)).status.code(), StatusCode::kDeadlineExceeded);
  EXPECT_GE(std::chrono::steady_clock::now() - start, milliseconds(2400));
  EXPECT_EQ(decoder.migrator.counters().failed, 1U);
  EXPECT_EQ(leases.num_live(), 1);  // kept for another attempt
}

TEST_P(EarlyPull, AnOwnerThatAbortsOrDiesMidwayFailsThePullAtOnce) {
  for (const bool dies : {false, true}) {
    OwnerGroup owners({.transport = GetParam()});
    Decoder decoder(ModelLayout(4, 31, 1, 0));
    const auto sources = owners.Lease(0);
    MigrationRequest request = decoder.Request(1, sources, 50, seconds(60));
    const LeaseBlocks tables = request.local_blocks;
    decoder.migrator.Post(std::move(request));
    ASSERT_TRUE(owners.rank(0).leases.MarkTokensDone(sources[0].lease, 16).ok());
    ASSERT_TRUE(Eventually([&] { return decoder.Arrived(tables, 16, kLayers); }));
    if (dies) {
      owners.rank(0).server.reset();
    } else {
      ASSERT_TRUE(owners.rank(0).leases.Abort(sources[0].lease).ok());
    }
    const StatusCode why = decoder.Wait(seconds(5)).status.code();
    EXPECT_EQ(why, dies ? StatusCode::kUnavailable : StatusCode::kPermissionDenied);
    EXPECT_GT(decoder.migrator.counters().early_bytes, 0U);
  }
}

TEST_P(EarlyPull, AnAbortedReaderReturnsTheBlocksOfALeaseStillBeingFilled) {
  OwnerGroup owners({.transport = GetParam()});
  Decoder decoder(ModelLayout(4, 31, 1, 0));
  const auto sources = owners.Lease(0);
  MigrationRequest request = decoder.Request(1, sources, 50, seconds(60));
  const LeaseBlocks tables = request.local_blocks;
  decoder.migrator.Post(std::move(request));
  ASSERT_TRUE(owners.rank(0).leases.MarkTokensDone(sources[0].lease, 16).ok());
  ASSERT_TRUE(Eventually([&] { return decoder.Arrived(tables, 16, kLayers); }));
  decoder.migrator.Abort(RequestId(1));
  EXPECT_EQ(decoder.Wait(seconds(5)).status.code(), StatusCode::kUnavailable);
  EXPECT_TRUE(Eventually([&] { return owners.AllReturned(1); }));
  EXPECT_FALSE(owners.rank(0).leases.MarkTokensDone(sources[0].lease, 32).ok());
  EXPECT_EQ(decoder.migrator.counters().aborted, 1U);
}

INSTANTIATE_TEST_SUITE_P(Transports, EarlyPull, testing::ValuesIn(AvailableTransports()),
                         [](const auto& param) { return param.param; });

}  // namespace
}  // namespace dlcore::testing_harness

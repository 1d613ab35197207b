#include "transport/kv_migrator.h"

#include "tests/cpp/transport/migrator_harness.h"

namespace dlcore::testing_harness {
namespace {

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
  EXPECT_TRUE(Eventually([&] { return decoder.Arrived(tables, 50, 1); }));
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
  MigrationRequest request = decoder.Request(1, owners.Lease(1), 50, seconds(60));
  const LeaseBlocks tables = request.local_blocks;
  decoder.migrator.Post(std::move(request));
  ASSERT_TRUE(Eventually([&] { return decoder.Arrived(tables, 50, 1); }));
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

enum class Filling { kBefore, kMeanwhile };

// The owner goes on whatever became of its lease.
void FillInChunks(LeaseTable* leases, LeaseRef lease) {
  for (const int32_t done : {30, 50}) {
    std::this_thread::sleep_for(milliseconds(5));
    static_cast<void>(leases->MarkTokensDone(lease, done));
  }
}

// One migration with one fault. Whatever happens: one event in time, right bytes
// if it completed, a retry that works, and every block back.
void RunWithFault(Filling filling, OneFault::Kind kind, int32_t target, bool at_owner,
                  const std::string& transport, bool* reached) {
  OneFault fault(kind, target);
  OwnerGroup owners({.transport = transport,
                     .owner_filter = at_owner ? &fault : nullptr,
                     .ttl = milliseconds(1500)});
  Decoder decoder(ModelLayout(8, 31, 1, 0), seconds(2), at_owner ? nullptr : &fault);
  const bool meanwhile = filling == Filling::kMeanwhile;
  const auto sources = owners.Lease(meanwhile ? 0 : kLayers);
  MigrationRequest request = decoder.Request(1, sources, 50, milliseconds(300));
  const LeaseBlocks tables = request.local_blocks;
  decoder.migrator.Post(std::move(request));
  if (meanwhile) FillInChunks(&owners.rank(0).leases, sources[0].lease);
  const MigrationEvent event = decoder.Wait();
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
      retry = decoder.Wait();
    }
    ASSERT_TRUE(retry.status.ok()) << retry.status.message();
    decoder.ExpectContent(tables, 0, 50);
  }
  EXPECT_TRUE(Eventually([&] { return owners.rank(0).leases.num_live() == 0; }));
  *reached = fault.reached();
}

void SweepMessages(const std::string& transport, Filling filling, OneFault::Kind kind,
                   bool at_owner) {
  bool reached = true;
  int32_t target = 0;
  for (; reached && target < 40; ++target) {
    SCOPED_TRACE("fault " + std::to_string(static_cast<int>(kind)) + " at message " +
                 std::to_string(target) + (at_owner ? " of the owner" : " of the reader"));
    RunWithFault(filling, kind, target, at_owner, transport, &reached);
  }
  EXPECT_GT(target, 3) << "faults were injected";
  EXPECT_FALSE(reached) << "every message had its turn";
}

void SweepFaults(const std::string& transport, Filling filling) {
  std::vector<std::thread> sweeps;  // they mostly wait for timeouts: side by side
  for (const OneFault::Kind kind : {OneFault::Kind::kDelay, OneFault::Kind::kDrop,
                                    OneFault::Kind::kTruncate, OneFault::Kind::kDisconnect}) {
    for (const bool at_owner : {true, false}) {
      sweeps.emplace_back([=] { SweepMessages(transport, filling, kind, at_owner); });
    }
  }
  for (std::thread& sweep : sweeps) sweep.join();
}

TEST_P(KvMigratorTest, SurvivesEveryFaultAtEveryMessage) {
  SweepFaults(GetParam(), Filling::kBefore);
}

TEST_P(KvMigratorTest, SurvivesEveryFaultAtEveryMessageWhileTheOwnerFills) {
  SweepFaults(GetParam(), Filling::kMeanwhile);
}

INSTANTIATE_TEST_SUITE_P(Transports, KvMigratorTest, testing::ValuesIn(AvailableTransports()),
                         [](const auto& param) { return param.param; });

}  // namespace
}  // namespace dlcore::testing_harness

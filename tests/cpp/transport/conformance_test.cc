#include <array>
#include <random>

#include "tests/cpp/transport/transport_harness.h"

// What every transport must do. A new transport passes by being registered.
namespace dlcore::testing_harness {
namespace {

// Whatever the tokens: so many layers.
LeaseProgress Layers(int32_t count) { return {INT32_MAX, count}; }

class Conformance : public testing::TestWithParam<std::string> {
 protected:
  static uint64_t BlockBytes(const Owner& owner, int32_t group = 0) {
    return owner.pool.layout().bytes_per_block(group);
  }
};

TEST_P(Conformance, LeaseInfoDescribesThePool) {
  Owner owner(GetParam());
  const LeaseBlocks blocks = Tables({3, 1, 2}, {7});
  const LeaseRef lease = owner.Lease(blocks, 2);
  Reader reader(owner.server->endpoint());
  const TransportEvent event = reader.Open(lease);
  ASSERT_TRUE(event.status.ok()) << event.status.message();
  EXPECT_EQ(event.kind, TransportEvent::Kind::kLeaseOpened);
  EXPECT_EQ(event.lease.blocks, blocks);
  EXPECT_EQ(event.lease.num_tokens, 16);
  EXPECT_EQ(event.lease.done, (LeaseProgress{0, 2}));
  EXPECT_EQ(event.lease.layout.groups, owner.pool.layout().groups);
  for (const KvLayer& layer : event.lease.layout.layers) EXPECT_EQ(layer.base, 0U);
}

TEST_P(Conformance, ReadsTheRightBytesOfKvAndOfEmbeddings) {
  Owner owner(GetParam());
  const LeaseRef lease = owner.Lease(Tables({4, 5, 6}, {9, 10}));
  Reader reader(owner.server->endpoint());
  for (const int32_t layer : {0, 1, 2, 3}) {
    const bool embedding = layer == 2;
    const uint64_t block = BlockBytes(owner, embedding ? 1 : 0);
    const uint64_t offset = (embedding ? 9 : 4) * block;
    Bytes local((embedding ? 2 : 3) * block);
    const Status s = reader.Read(lease, layer, {RangeTo(offset, local.data(), local.size())});
    ASSERT_TRUE(s.ok()) << s.message();
    const auto& remote = owner.pool.layer(static_cast<size_t>(layer));
    EXPECT_TRUE(std::equal(local.begin(), local.end(), remote.begin() + static_cast<long>(offset)));
  }
}

TEST_P(Conformance, ScatteredRangesLandWhereAskedAndNowhereElse) {
  Owner owner(GetParam());
  const LeaseBlocks blocks = Tables({0, 2, 3, 8, 9, 10, 31}, {});
  const LeaseRef lease = owner.Lease(blocks);
  Reader reader(owner.server->endpoint());
  std::mt19937_64 engine(5);
  const uint64_t block = BlockBytes(owner);
  for (int round = 0; round < 20; ++round) {
    Bytes local(256 * 1024, 0xee);
    Bytes expected = local;
    std::vector<ReadRange> ranges;
    // Up to 10,000 ranges: more than one message may carry.
    const size_t count = round == 0 ? 10'000 : 1 + engine() % 500;
    const size_t stride = local.size() / count;
    for (size_t i = 0; i < count; ++i) {
      const uint64_t length = 1 + engine() % (std::min(stride, block) - 1);
      const auto& table = blocks[0];
      const uint64_t id = static_cast<uint64_t>(table[engine() % table.size()].value);
      const uint64_t offset = id * block + engine() % (block - length);
      ranges.push_back(RangeTo(offset, local.data() + i * stride, length));
      std::memcpy(expected.data() + i * stride, owner.pool.layer(1).data() + offset, length);
    }
    const Status s = reader.Read(lease, 1, ranges);
    ASSERT_TRUE(s.ok()) << s.message();
    ASSERT_EQ(local, expected);
  }
}

TEST_P(Conformance, ReadsLargerThanTheWindowArrive) {
  Owner::Settings settings;
  settings.layout = MixedLayout(32);
  settings.layout.groups[0].bytes_per_head = 16384;  // 1 MiB blocks
  Owner owner(GetParam(), settings);
  const LeaseRef lease = owner.Lease(Tables({0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12,
                                             13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25},
                                            {}));
  Reader reader(owner.server->endpoint());
  Bytes local(26 * BlockBytes(owner));
  const Status s = reader.Read(lease, 0, {RangeTo(0, local.data(), local.size())});
  ASSERT_TRUE(s.ok()) << s.message();
  EXPECT_TRUE(std::equal(local.begin(), local.end(), owner.pool.layer(0).begin()));
}

TEST_P(Conformance, ConcurrentReadersEachGetTheirBytes) {
  Owner owner(GetParam());
  const LeaseBlocks blocks = Tables({0, 1, 2, 3, 4, 5, 6, 7}, {});
  const LeaseRef lease = owner.Lease(blocks);
  const uint64_t block = BlockBytes(owner);
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Reader reader(owner.server->endpoint());
      Bytes local(16 * block);
      for (int round = 0; round < 25; ++round) {
        std::vector<uint64_t> tags;
        for (uint64_t i = 0; i < 16; ++i) {  // many under way at once
          const uint64_t from = (i + t) % 8;
          tags.push_back(reader.NextTag());
          reader.client->Read(tags.back(), lease, 3,
                              {RangeTo(from * block, local.data() + i * block, block)},
                              In(seconds(20)));
        }
        for (uint64_t i = 0; i < 16; ++i) {
          ASSERT_TRUE(reader.Wait(tags[i]).status.ok());
          const uint64_t from = (i + t) % 8;
          ASSERT_EQ(std::memcmp(local.data() + i * block, owner.pool.layer(3).data() + from * block,
                                block),
                    0);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(Conformance, UnauthenticatedReaderIsRefused) {
  Owner owner(GetParam());
  const LeaseRef lease = owner.Lease(Tables({1}, {}));
  Reader stranger(owner.server->endpoint(), "another key of enough bytes");
  Bytes byte(1);
  EXPECT_EQ(stranger.Read(lease, 0, {RangeTo(BlockBytes(owner), byte.data(), 1)}).code(),
            StatusCode::kPermissionDenied);
  EXPECT_EQ(stranger.Open(lease).status.code(), StatusCode::kPermissionDenied);
  Reader friendly(owner.server->endpoint());
  EXPECT_TRUE(friendly.Open(lease).status.ok());
}

TEST_P(Conformance, ShortKeysAreRefusedByTheServer) {
  Owner owner(GetParam());
  TransportServerOptions options = owner.options;
  options.key = "short";
  std::unique_ptr<TransportServer> server;
  EXPECT_EQ(NewTransportServer(GetParam(), options, &server).code(), StatusCode::kInvalidArgument);
}

TEST_P(Conformance, WrongEpochAndEndedLeasesAreRefused) {
  Owner owner(GetParam());
  const LeaseRef lease = owner.Lease(Tables({1}, {}));
  Reader reader(owner.server->endpoint());
  Bytes byte(1);
  const auto read = [&](LeaseRef name) {
    return reader.Read(name, 0, {RangeTo(BlockBytes(owner), byte.data(), 1)}).code();
  };
  EXPECT_EQ(read({lease.id, lease.epoch + 1}), StatusCode::kPermissionDenied);
  EXPECT_EQ(read({lease.id + 1, lease.epoch}), StatusCode::kPermissionDenied);
  EXPECT_EQ(read({~uint64_t{0}, lease.epoch}), StatusCode::kPermissionDenied);
  EXPECT_EQ(read(lease), StatusCode::kOk);
  reader.client->Release(lease);
  EXPECT_FALSE(reader.Open(lease).status.ok());  // same connection: the release went first
  EXPECT_EQ(owner.returned, 1);
  const LeaseRef next = owner.Lease(Tables({1}, {}));
  EXPECT_EQ(read(lease), StatusCode::kPermissionDenied);
  EXPECT_EQ(read(next), StatusCode::kOk);
}

TEST_P(Conformance, RangesOutsideTheLeaseAreRefused) {
  Owner owner(GetParam());
  const LeaseRef lease = owner.Lease(Tables({2, 3}, {5}));
  owner.pool.AllowOnly(Tables({2, 3}, {5}));
  Reader reader(owner.server->endpoint());
  const uint64_t block = BlockBytes(owner);
  Bytes local(8 * block);
  const auto read = [&](int32_t layer, uint64_t offset, uint64_t length) {
    return reader.Read(lease, layer, {RangeTo(offset, local.data(), length)}).code();
  };
  EXPECT_EQ(read(0, 2 * block, 2 * block), StatusCode::kOk);
  EXPECT_EQ(read(0, 2 * block - 1, 1), StatusCode::kPermissionDenied);
  EXPECT_EQ(read(0, 3 * block, block + 1), StatusCode::kPermissionDenied);
  EXPECT_EQ(read(0, 0, 4 * block), StatusCode::kPermissionDenied);
  EXPECT_EQ(read(0, ~uint64_t{0}, 1), StatusCode::kPermissionDenied);
  EXPECT_EQ(read(0, ~uint64_t{0} - 100, 200), StatusCode::kPermissionDenied);
  EXPECT_EQ(read(2, 2 * block, 1), StatusCode::kPermissionDenied);  // another group's blocks
  EXPECT_EQ(read(-1, 2 * block, 1), StatusCode::kPermissionDenied);
  EXPECT_EQ(read(4, 2 * block, 1), StatusCode::kPermissionDenied);
  // One bad range among good ones: nothing is answered.
  EXPECT_EQ(
      reader.Read(lease, 0, {RangeTo(2 * block, local.data(), 8), RangeTo(0, local.data(), 8)})
          .code(),
      StatusCode::kPermissionDenied);
  EXPECT_EQ(owner.pool.violations(), 0);
}

TEST_P(Conformance, AbsurdLengthsAreRefused) {
  Owner owner(GetParam());
  const LeaseRef lease = owner.Lease(Tables({2}, {}));
  // What a correct client cannot send: lengths far beyond slot and pool.
  std::atomic<bool> corrupt{true};
  Filter filter([&](FrameType type, std::vector<std::byte>* body) {
    if (type == FrameType::kRead && corrupt) {
      std::fill(body->end() - 4, body->end(), std::byte{0xff});
    }
    return FrameFault::kNone;
  });
  Reader reader(owner.server->endpoint(), kKey, &filter);
  Bytes byte(1);
  const auto read = [&] {
    return reader.Read(lease, 0, {RangeTo(2 * BlockBytes(owner), byte.data(), 1)});
  };
  EXPECT_EQ(read().code(), StatusCode::kInvalidArgument);
  corrupt = false;
  EXPECT_TRUE(read().ok());
  EXPECT_FALSE(reader.Read(lease, 0, {}).ok());
  EXPECT_FALSE(reader.Read(lease, 0, {{2 * BlockBytes(owner), 0, 0}}).ok());
}

TEST_P(Conformance, ReadsWaitForTheirLayer) {
  Owner owner(GetParam());
  const LeaseRef lease = owner.Lease(Tables({2}, {}), 1);
  Reader reader(owner.server->endpoint());
  const uint64_t block = BlockBytes(owner);
  Bytes local(block);
  // Layer 3 waits; layer 0, asked later, does not wait behind it.
  const uint64_t waiting = reader.NextTag();
  reader.client->Read(waiting, lease, 3, {RangeTo(2 * block, local.data(), block)},
                      In(seconds(20)));
  Bytes other(block);
  ASSERT_TRUE(reader.Read(lease, 0, {RangeTo(2 * block, other.data(), block)}).ok());
  std::fill(owner.pool.layer(3).begin(), owner.pool.layer(3).end(), uint8_t{0x5a});
  ASSERT_TRUE(owner.leases.MarkLayersDone(lease, 4).ok());
  ASSERT_TRUE(reader.Wait(waiting).status.ok());
  EXPECT_EQ(local, Bytes(block, 0x5a));
}

TEST_P(Conformance, OpenLeaseWaitsForLayersUntilItsDeadline) {
  Owner owner(GetParam());
  const LeaseRef lease = owner.Lease(Tables({2}, {}), 1);
  Reader reader(owner.server->endpoint());
  EXPECT_EQ(reader.Open(lease, Layers(1)).lease.done.layers, 1);
  EXPECT_EQ(reader.Open(lease, Layers(2), milliseconds(50)).status.code(),
            StatusCode::kDeadlineExceeded);
  const uint64_t tag = reader.NextTag();
  reader.client->OpenLease(tag, lease, Layers(3), In(seconds(20)));
  ASSERT_TRUE(owner.leases.MarkLayersDone(lease, 3).ok());
  EXPECT_EQ(reader.Wait(tag).lease.done.layers, 3);
}

TEST_P(Conformance, WaitingReadEndsWhenTheLeaseDoes) {
  Owner owner(GetParam());
  const LeaseRef lease = owner.Lease(Tables({2}, {}), 1);
  Reader reader(owner.server->endpoint());
  Bytes byte(1);
  const uint64_t tag = reader.NextTag();
  reader.client->Read(tag, lease, 3, {RangeTo(2 * BlockBytes(owner), byte.data(), 1)},
                      In(seconds(20)));
  EXPECT_TRUE(owner.leases.Release(lease).ok());
  EXPECT_EQ(reader.Wait(tag).status.code(), StatusCode::kPermissionDenied);
}

TEST_P(Conformance, DeadlineHoldsWhenTheOwnerStalls) {
  std::atomic<bool> stall{false};
  Filter filter([&](FrameType type, std::vector<std::byte>*) {
    return stall && type == FrameType::kReadReply ? FrameFault::kDrop : FrameFault::kNone;
  });
  Owner::Settings settings;
  settings.filter = &filter;
  Owner owner(GetParam(), settings);
  const LeaseRef lease = owner.Lease(Tables({2}, {}));
  Reader reader(owner.server->endpoint(), kKey, nullptr, milliseconds(100));
  const uint64_t block = BlockBytes(owner);
  Bytes byte(1);
  ASSERT_TRUE(reader.Read(lease, 0, {RangeTo(2 * block, byte.data(), 1)}).ok());
  stall = true;
  const TimePoint start = std::chrono::steady_clock::now();
  EXPECT_EQ(reader.Read(lease, 0, {RangeTo(2 * block, byte.data(), 1)}, milliseconds(100)).code(),
            StatusCode::kDeadlineExceeded);
  const auto took = std::chrono::steady_clock::now() - start;
  EXPECT_GE(took, milliseconds(100));
  EXPECT_LT(took, seconds(5));
  stall = false;
  // The stalled connection is given up; until then reads may fail with it.
  const TimePoint give_up = In(seconds(20));
  Status s = Status::Unavailable("not tried");
  while (!s.ok() && std::chrono::steady_clock::now() < give_up) {
    s = reader.Read(lease, 0, {RangeTo(2 * block, byte.data(), 1)});
  }
  EXPECT_TRUE(s.ok()) << s.message();
}

TEST_P(Conformance, DeadlineHoldsWhenNobodyAnswersTheConnection) {
  Filter filter([&](FrameType, std::vector<std::byte>*) { return FrameFault::kDrop; });
  Owner::Settings settings;
  settings.filter = &filter;
  Owner owner(GetParam(), settings);
  Reader reader(owner.server->endpoint());
  const TimePoint start = std::chrono::steady_clock::now();
  EXPECT_EQ(reader.Open({0, 0}, {}, milliseconds(100)).status.code(),
            StatusCode::kDeadlineExceeded);
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(5));
}

TEST_P(Conformance, LateAnswersLandInNobodysData) {
  // The owner answers long after the deadline; by then the reader's memory
  // belongs to someone else.
  std::atomic<bool> slow{true};
  Filter filter([&](FrameType type, std::vector<std::byte>*) {
    if (slow && type == FrameType::kReadReply) std::this_thread::sleep_for(milliseconds(300));
    return FrameFault::kNone;
  });
  Owner::Settings settings;
  settings.filter = &filter;
  Owner owner(GetParam(), settings);
  const LeaseRef lease = owner.Lease(Tables({2}, {}));
  Reader reader(owner.server->endpoint());
  const uint64_t block = BlockBytes(owner);
  Bytes local(block);
  ASSERT_EQ(
      reader.Read(lease, 0, {RangeTo(2 * block, local.data(), block)}, milliseconds(50)).code(),
      StatusCode::kDeadlineExceeded);
  std::fill(local.begin(), local.end(), uint8_t{0xaa});
  std::this_thread::sleep_for(milliseconds(600));
  EXPECT_EQ(local, Bytes(block, 0xaa));
  slow = false;
  EXPECT_TRUE(reader.Read(lease, 0, {RangeTo(2 * block, local.data(), block)}).ok());
  EXPECT_EQ(std::memcmp(local.data(), owner.pool.layer(0).data() + 2 * block, block), 0);
}

TEST_P(Conformance, CancelEndsAWaitingReadAtOnce) {
  Owner owner(GetParam());
  const LeaseRef lease = owner.Lease(Tables({2}, {}), 1);
  Reader reader(owner.server->endpoint());
  const uint64_t block = BlockBytes(owner);
  Bytes local(block, 0xaa);
  const uint64_t tag = reader.NextTag();
  reader.client->Read(tag, lease, 3, {RangeTo(2 * block, local.data(), block)}, In(seconds(20)));
  reader.client->Cancel(tag);
  reader.client->Cancel(tag);  // a second one is harmless
  EXPECT_EQ(reader.Wait(tag, seconds(5)).status.code(), StatusCode::kUnavailable);
  ASSERT_TRUE(owner.leases.MarkLayersDone(lease, 4).ok());
  Bytes other(block);
  ASSERT_TRUE(reader.Read(lease, 3, {RangeTo(2 * block, other.data(), block)}).ok());
  EXPECT_EQ(local, Bytes(block, 0xaa));
}

TEST_P(Conformance, PeerDeathIsNoticed) {
  Owner owner(GetParam());
  const LeaseRef lease = owner.Lease(Tables({2}, {}), 1);
  Reader reader(owner.server->endpoint());
  ASSERT_TRUE(reader.Open(lease).status.ok());
  Bytes byte(1);
  const uint64_t tag = reader.NextTag();
  reader.client->Read(tag, lease, 3, {RangeTo(2 * BlockBytes(owner), byte.data(), 1)},
                      In(seconds(60)));
  owner.server.reset();
  EXPECT_EQ(reader.Wait(tag, seconds(5)).status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(reader.Open(lease).status.code(), StatusCode::kUnavailable);
}

TEST_P(Conformance, DeadReaderUnpinsItsLease) {
  Owner owner(GetParam());
  const LeaseRef lease = owner.Lease(Tables({2}, {}), 1);
  {
    Reader reader(owner.server->endpoint());
    ASSERT_TRUE(reader.Open(lease).status.ok());
    Bytes byte(1);
    reader.client->Read(1000, lease, 3, {RangeTo(2 * BlockBytes(owner), byte.data(), 1)},
                        In(seconds(60)));
  }
  EXPECT_TRUE(owner.leases.Release(lease).ok());
  EXPECT_EQ(owner.returned, 1);
}

TEST_P(Conformance, LeasesExpireWithoutAnyReader) {
  Owner::Settings settings;
  settings.ttl = milliseconds(100);
  Owner owner(GetParam(), settings);
  const LeaseRef lease = owner.Lease(Tables({1, 2}, {}));
  for (int i = 0; i < 100 && owner.returned == 0; ++i) {
    std::this_thread::sleep_for(milliseconds(20));
  }
  EXPECT_EQ(owner.blocks_returned, 2);
  Reader reader(owner.server->endpoint());
  EXPECT_EQ(reader.Open(lease).status.code(), StatusCode::kPermissionDenied);
}

INSTANTIATE_TEST_SUITE_P(Transports, Conformance, testing::ValuesIn(AvailableTransports()),
                         [](const auto& param) { return param.param; });

}  // namespace
}  // namespace dlcore::testing_harness

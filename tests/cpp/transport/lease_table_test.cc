#include "transport/lease_table.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "gtest/gtest.h"

namespace dlcore {
namespace {

using std::chrono::milliseconds;

constexpr int32_t kNumBlocks = 64;
constexpr int32_t kNumLayers = 4;
constexpr uint64_t kBase = 0x100000;

KvLayout PoolLayout() {
  KvLayout layout;
  layout.groups = {{.block_size = 4,
                    .num_blocks = kNumBlocks,
                    .num_planes = 2,
                    .num_kv_heads = 1,
                    .bytes_per_head = 8}};
  for (int32_t i = 0; i < kNumLayers; ++i) {
    layout.layers.push_back({0, kBase * static_cast<uint64_t>(i + 1)});
  }
  return layout;
}
const uint64_t kBlockBytes = PoolLayout().bytes_per_block(0);

LeaseBlocks OneTable(std::initializer_list<int32_t> ids) {
  LeaseBlocks blocks(1);
  for (const int32_t id : ids) blocks[0].emplace_back(id);
  return blocks;
}

class LeaseTableTest : public testing::Test {
 protected:
  TimePoint now_{};
  std::vector<LeaseRef> returned_;
  LeaseTable table_{PoolLayout(),
                    {.ttl = milliseconds(1000), .clock = [this] { return now_; }},
                    [this](LeaseRef lease, const LeaseBlocks&) { returned_.push_back(lease); }};

  LeaseRef Create(std::initializer_list<int32_t> ids, int32_t layers_done = kNumLayers) {
    LeaseRef lease;
    EXPECT_TRUE(table_.Create(OneTable(ids), 8, &lease).ok());
    if (layers_done > 0) {
      EXPECT_TRUE(table_.MarkLayersDone(lease, layers_done).ok());
    }
    return lease;
  }
  StatusCode Begin(LeaseRef lease, int32_t layer, LayerRange range) {
    std::vector<MemoryRange> out;
    return table_.BeginRead(lease, layer, std::span(&range, 1), &out).code();
  }
  LayerRange Block(int32_t index) const {
    return {static_cast<uint64_t>(index) * kBlockBytes, kBlockBytes};
  }
};

TEST_F(LeaseTableTest, AckReturnsBlocksOnceAndRefusesLateReads) {
  const LeaseRef lease = Create({3, 4});
  EXPECT_EQ(Begin(lease, 0, Block(3)), StatusCode::kOk);
  table_.EndRead(lease);
  EXPECT_TRUE(table_.Release(lease).ok());
  EXPECT_FALSE(table_.Release(lease).ok());
  EXPECT_EQ(returned_, std::vector<LeaseRef>{lease});
  EXPECT_EQ(Begin(lease, 0, Block(3)), StatusCode::kPermissionDenied);
  // Another lease takes its place: the old name still fits nothing.
  const LeaseRef next = Create({3, 4});
  EXPECT_EQ(next.id, lease.id);
  EXPECT_EQ(Begin(lease, 0, Block(3)), StatusCode::kPermissionDenied);
  EXPECT_EQ(Begin(next, 0, Block(3)), StatusCode::kOk);
}

TEST_F(LeaseTableTest, ExpiryWaitsForTheReadInFlight) {
  const LeaseRef lease = Create({1});
  ASSERT_EQ(Begin(lease, 0, Block(1)), StatusCode::kOk);
  now_ += milliseconds(1001);
  EXPECT_EQ(table_.Expire(), 1);
  EXPECT_TRUE(returned_.empty());
  EXPECT_EQ(Begin(lease, 0, Block(1)), StatusCode::kPermissionDenied);
  table_.EndRead(lease);
  EXPECT_EQ(returned_, std::vector<LeaseRef>{lease});
  EXPECT_EQ(table_.Expire(), 0);
}

TEST_F(LeaseTableTest, LayersBecomeReadableOneByOne) {
  const LeaseRef lease = Create({1}, 0);
  EXPECT_EQ(Begin(lease, 0, Block(1)), StatusCode::kResourceExhausted);
  int notified = 0;
  const int32_t token = table_.AddListener([&] { ++notified; });
  ASSERT_TRUE(table_.MarkLayersDone(lease, 2).ok());
  EXPECT_EQ(notified, 1);
  table_.RemoveListener(token);
  EXPECT_EQ(Begin(lease, 1, Block(1)), StatusCode::kOk);
  EXPECT_EQ(Begin(lease, 2, Block(1)), StatusCode::kResourceExhausted);
  EXPECT_FALSE(table_.MarkLayersDone(lease, 2).ok());
  EXPECT_FALSE(table_.MarkLayersDone(lease, kNumLayers + 1).ok());
}

TEST_F(LeaseTableTest, ReadsStayInsideTheLeasedBlocks) {
  //  blocks 0 1 [2 3] 4 [5] 6
  const LeaseRef lease = Create({5, 2, 3});
  const auto begin = [&](uint64_t offset, uint64_t length) {
    const StatusCode code = Begin(lease, 0, {offset, length});
    if (code == StatusCode::kOk) table_.EndRead(lease);
    return code;
  };
  const uint64_t b = kBlockBytes;
  EXPECT_EQ(begin(2 * b, 2 * b), StatusCode::kOk);
  EXPECT_EQ(begin(2 * b + 1, 2 * b - 1), StatusCode::kOk);
  EXPECT_EQ(begin(5 * b, b), StatusCode::kOk);
  for (const auto& [offset, length] :
       std::vector<std::pair<uint64_t, uint64_t>>{{2 * b, 2 * b + 1},
                                                  {2 * b - 1, 1},
                                                  {4 * b, 1},
                                                  {3 * b, 3 * b},
                                                  {6 * b, b},
                                                  {2 * b, 0},
                                                  {~uint64_t{0}, 1},
                                                  {2 * b, ~uint64_t{0}},
                                                  {~uint64_t{0} - b, 2 * b},
                                                  {0, b},
                                                  {uint64_t{1} << 32, b}}) {
    EXPECT_EQ(begin(offset, length), StatusCode::kPermissionDenied) << offset << "+" << length;
  }
  EXPECT_EQ(Begin(lease, -1, Block(2)), StatusCode::kPermissionDenied);
  EXPECT_EQ(Begin(lease, kNumLayers, Block(2)), StatusCode::kPermissionDenied);
  EXPECT_EQ(Begin({lease.id + 1, lease.epoch}, 0, Block(2)), StatusCode::kPermissionDenied);
}

TEST_F(LeaseTableTest, AddressesComeFromTheLayersBase) {
  const LeaseRef lease = Create({2});
  const LayerRange range{2 * kBlockBytes + 5, 7};
  std::vector<MemoryRange> out;
  ASSERT_TRUE(table_.BeginRead(lease, 3, std::span(&range, 1), &out).ok());
  ASSERT_EQ(out.size(), 1U);
  EXPECT_EQ(out[0].address, 4 * kBase + 2 * kBlockBytes + 5);
  EXPECT_EQ(out[0].length, 7U);
}

TEST_F(LeaseTableTest, CreateRefusesBlocksOutsideThePool) {
  LeaseRef lease;
  EXPECT_FALSE(table_.Create(OneTable({kNumBlocks}), 1, &lease).ok());
  EXPECT_FALSE(table_.Create(OneTable({-1}), 1, &lease).ok());
  EXPECT_FALSE(table_.Create({}, 1, &lease).ok());
  EXPECT_EQ(table_.num_live(), 0);
}

// A model of the table in the plainest terms, compared after every operation.
struct Model {
  std::set<int32_t> blocks;
  TimePoint expiry;
  int32_t layers_done = 0;
  int32_t readers = 0;
  bool ending = false;
};

TEST(LeaseTableRandom, HoldsItsLawsOver400000Operations) {
  std::mt19937_64 engine(11);
  const auto pick = [&](int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(engine);
  };
  TimePoint now{};
  std::map<uint64_t, Model> live;  // by epoch
  std::map<uint64_t, LeaseRef> names;
  std::set<uint64_t> gone;
  std::vector<bool> leased(kNumBlocks);
  int32_t blocks_out = 0;
  LeaseTable table(PoolLayout(), {.ttl = milliseconds(50), .clock = [&] { return now; }},
                   [&](LeaseRef lease, const LeaseBlocks& blocks) {
                     // Exactly once, exactly its blocks, never under a read.
                     ASSERT_TRUE(live.contains(lease.epoch));
                     ASSERT_EQ(live[lease.epoch].readers, 0);
                     for (const BlockId b : blocks[0]) {
                       ASSERT_TRUE(leased[static_cast<size_t>(b.value)]);
                       leased[static_cast<size_t>(b.value)] = false;
                       --blocks_out;
                     }
                     live.erase(lease.epoch);
                     gone.insert(lease.epoch);
                     if (gone.size() > 64) gone.erase(gone.begin());
                   });
  const auto any_live = [&] {
    return std::next(live.begin(), pick(0, static_cast<int32_t>(live.size()) - 1));
  };
  for (int32_t op = 0; op < 400'000; ++op) {
    switch (pick(0, 7)) {
      case 0: {  // create from free blocks
        LeaseBlocks blocks(1);
        for (int32_t i = pick(1, 6); i > 0; --i) {
          const int32_t b = pick(0, kNumBlocks - 1);
          if (leased[static_cast<size_t>(b)]) continue;
          leased[static_cast<size_t>(b)] = true;
          ++blocks_out;
          blocks[0].emplace_back(b);
        }
        LeaseRef lease;
        ASSERT_TRUE(table.Create(blocks, 1, &lease).ok());
        Model& m = live[lease.epoch];
        for (const BlockId b : blocks[0]) m.blocks.insert(b.value);
        m.expiry = now + milliseconds(50);
        names[lease.epoch] = lease;
        break;
      }
      case 1: {
        if (live.empty()) break;
        auto& [epoch, m] = *any_live();
        const int32_t done = pick(0, kNumLayers);
        const bool filled = m.layers_done == kNumLayers;
        const bool grows = done > m.layers_done;
        const bool ok = table.MarkLayersDone(names[epoch], done).ok();
        // After a release or expiry the last layer is refused; nothing else is.
        ASSERT_EQ(ok, grows && !filled && !(m.ending && done == kNumLayers));
        if (grows) {
          m.layers_done = done;
          m.expiry = now + milliseconds(50);
        }
        break;
      }
      case 2:
      case 3: {
        if (live.empty()) break;
        auto& [epoch, m] = *any_live();
        const int32_t layer = pick(0, kNumLayers - 1);
        const int32_t first = pick(0, kNumBlocks - 1);
        const int32_t count = pick(1, 3);
        bool inside = true;
        for (int32_t b = first; b < first + count; ++b) inside &= m.blocks.contains(b);
        const LayerRange range{static_cast<uint64_t>(first) * kBlockBytes,
                               static_cast<uint64_t>(count) * kBlockBytes};
        std::vector<MemoryRange> out;
        const StatusCode code =
            table.BeginRead(names[epoch], layer, std::span(&range, 1), &out).code();
        const StatusCode expected = m.ending || !inside      ? StatusCode::kPermissionDenied
                                    : layer >= m.layers_done ? StatusCode::kResourceExhausted
                                                             : StatusCode::kOk;
        ASSERT_EQ(code, expected);
        if (code == StatusCode::kOk) ++m.readers;
        break;
      }
      case 4: {
        if (live.empty()) break;
        auto& [epoch, m] = *any_live();
        if (m.readers == 0) break;
        --m.readers;
        table.EndRead(names[epoch]);
        break;
      }
      case 5: {
        if (live.empty()) break;
        auto& [epoch, m] = *any_live();
        const bool ending = m.ending;
        m.ending = true;
        ASSERT_EQ(table.Release(names[epoch]).ok(), !ending);
        break;
      }
      case 6: {
        now += milliseconds(pick(0, 10));
        for (auto& [epoch, m] : live) m.ending |= m.expiry <= now;
        table.Expire();
        break;
      }
      default: {  // late readers
        if (gone.empty()) break;
        const LeaseRef lease = names[*gone.begin()];
        const LayerRange range{0, kBlockBytes};
        std::vector<MemoryRange> out;
        ASSERT_EQ(table.BeginRead(lease, 0, std::span(&range, 1), &out).code(),
                  StatusCode::kPermissionDenied);
        break;
      }
    }
    ASSERT_EQ(table.num_live(), static_cast<int32_t>(live.size()));
    ASSERT_EQ(blocks_out, std::count(leased.begin(), leased.end(), true));
  }
}

TEST(LeaseTableThreads, EveryLeaseReturnsOnceUnderContention) {
  std::atomic<int32_t> returned{0};
  LeaseTable table(PoolLayout(), {.ttl = milliseconds(1)},
                   [&](LeaseRef, const LeaseBlocks&) { ++returned; });
  constexpr int32_t kLeases = 4000;
  std::vector<LeaseRef> leases(kLeases);
  for (int32_t i = 0; i < kLeases; ++i) {
    ASSERT_TRUE(table.Create(OneTable({i % kNumBlocks}), 1, &leases[static_cast<size_t>(i)]).ok());
  }
  std::vector<std::thread> threads;
  for (int32_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (const LeaseRef lease : leases) {
        if (t == 0) (void)table.MarkLayersDone(lease, kNumLayers);
        const LayerRange range{lease.id % kNumBlocks * kBlockBytes, kBlockBytes};
        std::vector<MemoryRange> out;
        if (table.BeginRead(lease, 0, std::span(&range, 1), &out).ok()) table.EndRead(lease);
        if (t == 1) (void)table.Release(lease);
        if (t == 2) table.Expire();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::this_thread::sleep_for(milliseconds(2));
  table.Expire();
  EXPECT_EQ(returned, kLeases);
  EXPECT_EQ(table.num_live(), 0);
}

}  // namespace
}  // namespace dlcore

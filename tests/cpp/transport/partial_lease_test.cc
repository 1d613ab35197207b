// Leases whose tokens are written chunk by chunk: what may be read when.
#include <map>
#include <random>
#include <set>
#include <span>
#include <vector>

#include "gtest/gtest.h"
#include "transport/lease_table.h"

namespace dlcore {
namespace {

using std::chrono::milliseconds;

constexpr int32_t kNumBlocks = 48;
constexpr int32_t kNumLayers = 3;
constexpr int32_t kBlockSizes[] = {4, 6};

// Two groups with blocks of 4 and 6 tokens; layer 1 belongs to the second.
KvLayout PoolLayout() {
  KvLayout layout;
  for (const int32_t size : kBlockSizes) {
    layout.groups.push_back({.block_size = size,
                             .num_blocks = kNumBlocks,
                             .num_planes = 2,
                             .num_kv_heads = 1,
                             .bytes_per_head = 8});
  }
  layout.layers = {{0, 0x100000}, {1, 0x200000}, {0, 0x300000}};
  return layout;
}

// Blocks [first, first + count) of the pool, in both groups as long as the tokens need.
LeaseBlocks Neighbours(int32_t first, int32_t num_tokens) {
  LeaseBlocks blocks(2);
  for (size_t g = 0; g < 2; ++g) {
    const int32_t count = (num_tokens + kBlockSizes[g] - 1) / kBlockSizes[g];
    for (int32_t i = 0; i < count; ++i) blocks[g].emplace_back(first + i);
  }
  return blocks;
}

StatusCode Begin(LeaseTable* table, LeaseRef lease, int32_t layer, int32_t first_block,
                 int32_t count = 1) {
  const KvLayout layout = PoolLayout();
  const uint64_t bytes = layout.bytes_per_block(layout.layers[static_cast<size_t>(layer)].group);
  const LayerRange range{static_cast<uint64_t>(first_block) * bytes,
                         static_cast<uint64_t>(count) * bytes};
  std::vector<MemoryRange> out;
  return table->BeginRead(lease, layer, std::span(&range, 1), &out).code();
}

class PartialLease : public testing::Test {
 protected:
  TimePoint now_{};
  int returned_ = 0;
  LeaseTable table_{PoolLayout(),
                    {.ttl = milliseconds(1000), .clock = [this] { return now_; }},
                    [this](LeaseRef, const LeaseBlocks&) { ++returned_; }};

  LeaseRef Create(int32_t first, int32_t num_tokens) {
    LeaseRef lease;
    EXPECT_TRUE(table_.Create(Neighbours(first, num_tokens), num_tokens, &lease).ok());
    return lease;
  }
};

TEST_F(PartialLease, WholeBlocksBecomeReadableAsTheirTokensAreWritten) {
  //          group 0: [4][4][4][4][1]     group 1: [6][6][5]
  const LeaseRef lease = Create(10, 17);
  EXPECT_EQ(Begin(&table_, lease, 0, 10), StatusCode::kResourceExhausted);
  ASSERT_TRUE(table_.MarkTokensDone(lease, 9).ok());
  EXPECT_EQ(Begin(&table_, lease, 0, 10, 2), StatusCode::kOk);
  EXPECT_EQ(Begin(&table_, lease, 2, 11), StatusCode::kOk);
  EXPECT_EQ(Begin(&table_, lease, 0, 11, 2), StatusCode::kResourceExhausted);
  EXPECT_EQ(Begin(&table_, lease, 1, 10), StatusCode::kOk);
  EXPECT_EQ(Begin(&table_, lease, 1, 11), StatusCode::kResourceExhausted);
  EXPECT_EQ(Begin(&table_, lease, 0, 15), StatusCode::kPermissionDenied);
  ASSERT_TRUE(table_.MarkTokensDone(lease, 17).ok());
  EXPECT_EQ(Begin(&table_, lease, 0, 10, 5), StatusCode::kOk);
  EXPECT_EQ(Begin(&table_, lease, 1, 12), StatusCode::kOk);
  const LeaseCounters counters = table_.counters();
  const uint64_t block = PoolLayout().bytes_per_block(0);
  const uint64_t other = PoolLayout().bytes_per_block(1);
  EXPECT_EQ(counters.early_bytes, 3 * block + other);
  EXPECT_EQ(counters.bytes, 8 * block + 2 * other);
}

TEST_F(PartialLease, LayersOfTheLastChunkCountBesideTokens) {
  const LeaseRef lease = Create(0, 16);
  ASSERT_TRUE(table_.MarkTokensDone(lease, 8).ok());
  ASSERT_TRUE(table_.MarkLayersDone(lease, 1).ok());
  EXPECT_EQ(Begin(&table_, lease, 0, 0, 4), StatusCode::kOk);  // its layer is written
  EXPECT_EQ(Begin(&table_, lease, 2, 0, 2), StatusCode::kOk);  // its tokens are
  EXPECT_EQ(Begin(&table_, lease, 2, 0, 3), StatusCode::kResourceExhausted);
  LeaseInfo info;
  ASSERT_TRUE(table_.Describe(lease, {8, 2}, &info).ok());
  EXPECT_EQ(info.done, (LeaseProgress{8, 1}));
  EXPECT_EQ(table_.Describe(lease, {9, 2}, &info).code(), StatusCode::kResourceExhausted);
  ASSERT_TRUE(table_.MarkLayersDone(lease, kNumLayers).ok());
  ASSERT_TRUE(table_.Describe(lease, {100, 100}, &info).ok());  // more than there will be
  EXPECT_EQ(info.done, (LeaseProgress{16, kNumLayers}));
}

TEST_F(PartialLease, ProgressGrowsAndProlongsTheLease) {
  const LeaseRef lease = Create(0, 16);
  ASSERT_TRUE(table_.MarkTokensDone(lease, 8).ok());
  EXPECT_FALSE(table_.MarkTokensDone(lease, 8).ok());
  EXPECT_FALSE(table_.MarkTokensDone(lease, 17).ok());
  now_ += milliseconds(900);
  ASSERT_TRUE(table_.MarkTokensDone(lease, 12).ok());
  now_ += milliseconds(900);
  EXPECT_EQ(table_.Expire(), 0);
  now_ += milliseconds(101);
  EXPECT_EQ(table_.Expire(), 1);
  EXPECT_FALSE(table_.MarkTokensDone(lease, 16).ok());
  EXPECT_EQ(returned_, 1);
}

TEST_F(PartialLease, EndsAndRefusalsAreCountedByReason) {
  const LeaseRef released = Create(0, 4);
  const LeaseRef aborted = Create(4, 4);
  const LeaseRef expired = Create(8, 4);
  EXPECT_TRUE(table_.Release(released).ok());
  EXPECT_TRUE(table_.Abort(aborted).ok());
  EXPECT_FALSE(table_.Release(aborted).ok());  // late: nobody's fault
  now_ += milliseconds(1001);
  EXPECT_EQ(table_.Expire(), 1);
  EXPECT_EQ(Begin(&table_, expired, 0, 8), StatusCode::kPermissionDenied);
  EXPECT_EQ(Begin(&table_, {99, 1}, 0, 8), StatusCode::kPermissionDenied);
  const LeaseRef last = Create(0, 4);
  EXPECT_EQ(Begin(&table_, last, 0, 30), StatusCode::kPermissionDenied);
  EXPECT_EQ(Begin(&table_, last, 0, 0), StatusCode::kResourceExhausted);  // not a refusal
  table_.CountRefusal(LeaseRefusal::kKey);
  const LeaseCounters c = table_.counters();
  EXPECT_EQ(c.granted, 4U);
  EXPECT_EQ(c.released, 1U);
  EXPECT_EQ(c.aborted, 1U);
  EXPECT_EQ(c.expired, 1U);
  EXPECT_EQ(c.refused, (std::array<uint64_t, kNumLeaseRefusals>{1, 1, 1, 1}));
}

// A lease in the plainest terms.
struct Model {
  LeaseRef name;
  LeaseBlocks blocks;
  int32_t num_tokens = 0;
  LeaseProgress done;
  TimePoint expiry;
  int32_t readers = 0;
  bool ending = false;

  [[nodiscard]] bool filled() const { return done.tokens == num_tokens; }
  // The law of what may be read.
  [[nodiscard]] StatusCode Expected(int32_t layer, int32_t first, int32_t count) const {
    if (ending) return StatusCode::kPermissionDenied;
    const size_t g = layer == 1 ? 1 : 0;
    bool written = layer < done.layers;
    bool tokens_written = true;
    for (int32_t b = first; b < first + count; ++b) {
      const auto& table = blocks[g];
      size_t i = 0;
      while (i < table.size() && table[i].value != b) ++i;
      if (i == table.size()) return StatusCode::kPermissionDenied;
      tokens_written &= (static_cast<int32_t>(i) + 1) * kBlockSizes[g] <= done.tokens || filled();
    }
    written |= tokens_written;
    return written ? StatusCode::kOk : StatusCode::kResourceExhausted;
  }
};

TEST(PartialLeaseRandom, HoldsItsLawsOver300000Operations) {
  std::mt19937_64 engine(7);
  const auto pick = [&](int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(engine);
  };
  TimePoint now{};
  std::map<uint64_t, Model> live;  // by epoch
  LeaseTable table(PoolLayout(), {.ttl = milliseconds(50), .clock = [&] { return now; }},
                   [&](LeaseRef lease, const LeaseBlocks& blocks) {
                     ASSERT_TRUE(live.contains(lease.epoch));
                     ASSERT_EQ(live[lease.epoch].readers, 0);
                     ASSERT_EQ(live[lease.epoch].blocks, blocks);
                     live.erase(lease.epoch);
                   });
  int reads = 0;
  int early = 0;
  for (int32_t op = 0; op < 300'000; ++op) {
    if (live.size() < 4 || (live.size() < 8 && pick(0, 9) == 0)) {
      Model m;
      m.num_tokens = pick(1, 40);
      m.blocks = Neighbours(pick(0, kNumBlocks - 10), m.num_tokens);
      for (auto& blocks : m.blocks) std::shuffle(blocks.begin(), blocks.end(), engine);
      ASSERT_TRUE(table.Create(m.blocks, m.num_tokens, &m.name).ok());
      m.expiry = now + milliseconds(50);
      live[m.name.epoch] = m;
      continue;
    }
    Model& m = std::next(live.begin(), pick(0, static_cast<int32_t>(live.size()) - 1))->second;
    const LeaseRef name = m.name;
    switch (pick(0, 6)) {
      case 0:
      case 1: {
        const bool by_tokens = pick(0, 3) > 0;
        LeaseProgress next = m.done;
        (by_tokens ? next.tokens : next.layers) = pick(0, by_tokens ? 44 : kNumLayers + 1);
        const bool grows = by_tokens ? next.tokens > m.done.tokens && next.tokens <= m.num_tokens
                                     : next.layers > m.done.layers && next.layers <= kNumLayers;
        const bool fills = next.tokens == m.num_tokens || next.layers == kNumLayers;
        const bool ok = by_tokens ? table.MarkTokensDone(name, next.tokens).ok()
                                  : table.MarkLayersDone(name, next.layers).ok();
        ASSERT_EQ(ok, grows && !(m.ending && fills));
        if (!grows) break;
        m.done = fills ? LeaseProgress{m.num_tokens, kNumLayers} : next;
        m.expiry = now + milliseconds(50);
        break;
      }
      case 2:
      case 3: {
        const int32_t layer = pick(0, kNumLayers - 1);
        const auto& blocks = m.blocks[layer == 1 ? 1 : 0];
        const int32_t near = blocks[static_cast<size_t>(pick(0, 100)) % blocks.size()].value;
        const int32_t first = std::max(0, near + pick(-1, 1));
        const int32_t count = pick(1, 3);
        const StatusCode expected = m.Expected(layer, first, count);
        ASSERT_EQ(Begin(&table, name, layer, first, count), expected);
        if (expected != StatusCode::kOk) break;
        ++m.readers;
        ++reads;
        if (!m.filled()) ++early;
        break;
      }
      case 4:
        if (m.readers == 0) break;
        --m.readers;
        table.EndRead(name);
        break;
      case 5: {
        if (pick(0, 4) > 0) break;
        const bool ending = m.ending;
        m.ending = true;  // before the call: it may end `m`
        ASSERT_EQ((pick(0, 1) == 0 ? table.Release(name) : table.Abort(name)).ok(), !ending);
        break;
      }
      default:
        now += milliseconds(pick(0, 3));
        for (auto& [epoch, other] : live) other.ending |= other.expiry <= now;
        table.Expire();
        break;
    }
    ASSERT_EQ(table.num_live(), static_cast<int32_t>(live.size()));
  }
  EXPECT_GT(reads, 20'000);
  EXPECT_GT(early, 2'000);
}

}  // namespace
}  // namespace dlcore

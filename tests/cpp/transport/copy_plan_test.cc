#include "transport/copy_plan.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <random>

#include "gtest/gtest.h"

namespace dlcore {
namespace {

KvLayout Layout(KvGroup group, int32_t tp_size = 1, int32_t tp_rank = 0) {
  return {tp_size, tp_rank, {group}, {{0, 0}}};
}

std::vector<BlockId> Blocks(std::initializer_list<int32_t> ids) {
  std::vector<BlockId> blocks;
  for (const int32_t id : ids) blocks.emplace_back(id);
  return blocks;
}

// What the byte of (token, plane, head, byte) must be, wherever it lies.
uint8_t Content(int32_t token, int32_t plane, int32_t head, int32_t byte) {
  return static_cast<uint8_t>(1 + (token * 131 + plane * 31 + head * 17 + byte * 7) % 255);
}

struct Pool {
  KvLayout layout;
  std::vector<uint8_t> bytes;

  explicit Pool(KvLayout l) : layout(std::move(l)) {
    bytes.resize(layout.bytes_per_block(0) * static_cast<size_t>(layout.groups[0].num_blocks));
  }
  // The layout's definition, element by element:
  // [block][plane][local head][token in block][byte].
  uint8_t& At(std::span<const BlockId> table, int32_t token, int32_t plane, int32_t head,
              int32_t byte) {
    const KvGroup& g = layout.groups[0];
    size_t index = static_cast<size_t>(table[static_cast<size_t>(token / g.block_size)].value);
    index = index * static_cast<size_t>(g.num_planes) + static_cast<size_t>(plane);
    index = index * static_cast<size_t>(layout.num_local_heads(0)) +
            static_cast<size_t>(head - layout.first_head(0));
    index = index * static_cast<size_t>(g.block_size) + static_cast<size_t>(token % g.block_size);
    return bytes[index * static_cast<size_t>(g.bytes_per_head) + static_cast<size_t>(byte)];
  }
  bool Holds(int32_t head) const {
    return head >= layout.first_head(0) && head < layout.first_head(0) + layout.num_local_heads(0);
  }
};

template <class Visit>
void ForEachElement(const Pool& pool, int32_t first, int32_t count, Visit visit) {
  const KvGroup& g = pool.layout.groups[0];
  for (int32_t token = first; token < first + count; ++token) {
    for (int32_t plane = 0; plane < g.num_planes; ++plane) {
      for (int32_t head = 0; head < g.num_kv_heads; ++head) {
        for (int32_t byte = 0; byte < g.bytes_per_head; ++byte) visit(token, plane, head, byte);
      }
    }
  }
}

void Apply(const std::vector<CopyRange>& plan, const Pool& from, Pool* to) {
  for (const CopyRange& range : plan) {
    ASSERT_LE(range.remote_offset + range.length, from.bytes.size());
    ASSERT_LE(range.local_offset + range.length, to->bytes.size());
    std::memcpy(to->bytes.data() + range.local_offset, from.bytes.data() + range.remote_offset,
                range.length);
  }
}

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int32_t In(int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(engine_);
  }
  std::vector<BlockId> Table(int32_t num_blocks, int32_t count) {
    std::vector<int32_t> ids(static_cast<size_t>(num_blocks));
    std::iota(ids.begin(), ids.end(), 0);
    if (In(0, 2) != 0) std::shuffle(ids.begin(), ids.end(), engine_);
    std::vector<BlockId> table;
    for (int32_t i = 0; i < count; ++i) table.emplace_back(ids[static_cast<size_t>(i)]);
    return table;
  }

 private:
  std::mt19937_64 engine_;
};

TEST(CopyPlan, NeighbouringBlocksOfOneShapeBecomeOneRange) {
  //  remote: 3 4 5 | 9        local: 0 1 2 | 7
  const KvLayout layout = Layout({.block_size = 16,
                                  .num_blocks = 16,
                                  .num_planes = 2,
                                  .num_kv_heads = 4,
                                  .bytes_per_head = 32});
  const uint64_t b = layout.bytes_per_block(0);
  const auto remote = Blocks({3, 4, 5, 9});
  const auto local = Blocks({0, 1, 2, 7});
  std::vector<CopyRange> plan;
  ASSERT_TRUE(BuildCopyPlan(layout, layout, {0, remote, local, 0, 60}, &plan).ok());
  EXPECT_EQ(plan, (std::vector<CopyRange>{{3 * b, 0, 3 * b}, {9 * b, 7 * b, b}}));
}

TEST(CopyPlan, LatentOfAnotherBlockSizeStillMerges) {
  // One head and one plane: tokens are contiguous, so 4 blocks of 8 are 1 block of 32.
  const KvGroup small{.block_size = 8, .num_blocks = 8, .num_planes = 1, .bytes_per_head = 10};
  KvGroup large = small;
  large.block_size = 32;
  const auto remote = Blocks({2, 3, 4, 5});
  const auto local = Blocks({1});
  std::vector<CopyRange> plan;
  ASSERT_TRUE(BuildCopyPlan(Layout(small), Layout(large), {0, remote, local, 0, 30}, &plan).ok());
  EXPECT_EQ(plan, (std::vector<CopyRange>{{160, 320, 300}}));
}

TEST(CopyPlan, WholeRemoteBlocksAreAskedForInTheOrderOfTheirBytes) {
  KvGroup group{
      .block_size = 16, .num_blocks = 8, .num_planes = 2, .num_kv_heads = 4, .bytes_per_head = 10};
  const KvLayout remote = Layout(group);
  const uint64_t block_bytes = remote.bytes_per_block(0);
  for (const int32_t block_size : {4, 8, 24, 32}) {
    group.block_size = block_size;
    const auto blocks = Blocks({5, 2, 7});
    const auto local = Blocks({11, 2, 6, 0, 9, 4, 1, 8, 3, 5, 7, 10});
    group.num_blocks = 12;
    std::vector<CopyRange> plan;
    ASSERT_TRUE(BuildCopyPlan(remote, Layout(group), {0, blocks, local, 0, 48}, &plan).ok());
    uint64_t at = 0;
    for (const CopyRange& range : plan) {
      const auto block = static_cast<uint64_t>(blocks[at / block_bytes].value);
      EXPECT_EQ(range.remote_offset, block * block_bytes + at % block_bytes);
      at += range.length;
    }
    EXPECT_EQ(at, 3 * block_bytes);
  }
}

TEST(CopyPlan, EqualsElementwiseCopyForAnyBlockSizePoolSizeAndTp) {
  Random random(7);
  for (int32_t round = 0; round < 3000; ++round) {
    const int32_t heads = 1 << random.In(0, 3);
    const KvGroup from_group{.block_size = random.In(1, 9),
                             .num_blocks = random.In(8, 20),
                             .num_planes = random.In(1, 2),
                             .num_kv_heads = heads,
                             .bytes_per_head = random.In(1, 5)};
    KvGroup to_group = from_group;
    to_group.num_blocks = random.In(8, 20);
    if (random.In(0, 1) == 1) to_group.block_size = random.In(1, 9);
    const int32_t from_tp = 1 << random.In(0, 4);
    const int32_t to_tp = 1 << random.In(0, 4);
    const int32_t capacity = 8 * std::min(from_group.block_size, to_group.block_size);
    const int32_t first = random.In(0, 1) * random.In(0, capacity - 1);
    const int32_t count = random.In(0, capacity - first);
    const auto remote_table = random.Table(from_group.num_blocks, 8);
    const auto local_table = random.Table(to_group.num_blocks, 8);

    Pool to(Layout(to_group, to_tp, random.In(0, to_tp - 1)));
    std::vector<int> writes(to.bytes.size());
    for (const int32_t rank : SourceRanks(to.layout, from_tp)) {
      Pool from(Layout(from_group, from_tp, rank));
      ForEachElement(from, 0, capacity, [&](int32_t t, int32_t p, int32_t h, int32_t b) {
        if (from.Holds(h)) from.At(remote_table, t, p, h, b) = Content(t, p, h, b);
      });
      std::vector<CopyRange> plan;
      ASSERT_TRUE(
          BuildCopyPlan(from.layout, to.layout, {0, remote_table, local_table, first, count}, &plan)
              .ok());
      Apply(plan, from, &to);
      for (const CopyRange& r : plan) {
        for (uint64_t i = 0; i < r.length; ++i) ++writes[r.local_offset + i];
      }
    }
    ForEachElement(to, first, count, [&](int32_t t, int32_t p, int32_t h, int32_t b) {
      if (!to.Holds(h)) return;
      uint8_t& element = to.At(local_table, t, p, h, b);
      ASSERT_EQ(element, Content(t, p, h, b)) << "round " << round;
      ASSERT_EQ(writes[static_cast<size_t>(&element - to.bytes.data())], 1) << "round " << round;
    });
    // Blocks that are not the sequence's stay untouched.
    for (size_t i = 0; i < to.bytes.size(); ++i) {
      const BlockId block(static_cast<int32_t>(i / to.layout.bytes_per_block(0)));
      if (std::find(local_table.begin(), local_table.end(), block) == local_table.end()) {
        ASSERT_EQ(writes[i], 0);
      }
    }
  }
}

TEST(CopyPlan, RefusesWhatDoesNotFit) {
  const KvGroup group{
      .block_size = 4, .num_blocks = 4, .num_planes = 2, .num_kv_heads = 2, .bytes_per_head = 8};
  KvGroup other = group;
  other.bytes_per_head = 16;
  const auto good = Blocks({0, 1});
  const auto outside = Blocks({0, 4});
  const auto negative = Blocks({-1, 0});
  std::vector<CopyRange> plan;
  const KvLayout layout = Layout(group);
  EXPECT_FALSE(BuildCopyPlan(layout, Layout(other), {0, good, good, 0, 8}, &plan).ok());
  EXPECT_FALSE(BuildCopyPlan(layout, layout, {0, good, good, 0, 9}, &plan).ok());
  EXPECT_FALSE(BuildCopyPlan(layout, layout, {0, outside, good, 0, 8}, &plan).ok());
  EXPECT_FALSE(BuildCopyPlan(layout, layout, {0, good, negative, 0, 8}, &plan).ok());
  EXPECT_FALSE(BuildCopyPlan(layout, layout, {1, good, good, 0, 8}, &plan).ok());
  EXPECT_FALSE(BuildCopyPlan(layout, layout, {0, good, good, -1, 2}, &plan).ok());
}

TEST(KvLayout, RefusesAbsurdCounts) {
  const KvGroup good{
      .block_size = 16, .num_blocks = 8, .num_planes = 2, .num_kv_heads = 8, .bytes_per_head = 256};
  EXPECT_TRUE(Layout(good).Validate().ok());
  const auto refused = [&](auto change) {
    KvLayout layout = Layout(good);
    change(layout);
    return layout.Validate().code() == StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused([](KvLayout& l) { l.groups[0].block_size = 0; }));
  EXPECT_TRUE(refused([](KvLayout& l) { l.groups[0].block_size = 1 << 30; }));
  EXPECT_TRUE(refused([](KvLayout& l) { l.groups[0].num_planes = 3; }));
  EXPECT_TRUE(refused([](KvLayout& l) { l.groups[0].bytes_per_head = -1; }));
  EXPECT_TRUE(refused([](KvLayout& l) { l.tp_size = 3; }));
  EXPECT_TRUE(refused([](KvLayout& l) { l.tp_rank = 1; }));
  EXPECT_TRUE(refused([](KvLayout& l) { l.layers[0].group = 1; }));
  EXPECT_TRUE(refused([](KvLayout& l) { l.layers.clear(); }));
  EXPECT_TRUE(refused([](KvLayout& l) {
    l.groups[0] = {1 << 16, INT32_MAX, 2, 1 << 14, 1 << 20};
  }));
}

}  // namespace
}  // namespace dlcore

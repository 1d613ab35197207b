#include "kv/block_pool.h"

#include <random>
#include <set>
#include <vector>

#include <gtest/gtest.h>

namespace dlcore {
namespace {

// Random operations of the invariant test.
constexpr int kOperations = 600'000;

TEST(BlockPool, AllocateIsAllOrNothing) {
  BlockPool pool(4);
  std::vector<BlockId> taken;
  EXPECT_TRUE(pool.Allocate(3, &taken));
  EXPECT_FALSE(pool.Allocate(2, &taken));
  EXPECT_EQ(taken.size(), 3u);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_TRUE(pool.Allocate(1, &taken));
  EXPECT_TRUE(pool.Allocate(0, &taken));
  EXPECT_EQ(std::set<BlockId>(taken.begin(), taken.end()).size(), 4u);
}

TEST(BlockPool, LastReferenceFreesOrCaches) {
  BlockPool pool(2);
  std::vector<BlockId> b;
  ASSERT_TRUE(pool.Allocate(2, &b));
  pool.EnterCache(b[0]);
  pool.Ref(b[0]);
  pool.Unref(b[0]);
  EXPECT_EQ(pool.num_referenced(), 2);
  pool.Unref(b[0]);
  pool.Unref(b[1]);
  EXPECT_EQ(pool.num_cached(), 1);
  EXPECT_EQ(pool.num_free(), 1);
  pool.Ref(b[0]);
  EXPECT_EQ(pool.num_cached(), 0);
  pool.Unref(b[0]);
  pool.Evict(b[0]);
  EXPECT_EQ(pool.num_free(), 2);
}

TEST(BlockPoolDeathTest, MisuseIsCaught) {
  BlockPool pool(1);
  EXPECT_DEATH(pool.Ref(BlockId(0)), "is free");
  EXPECT_DEATH(pool.Unref(BlockId(0)), "no reference");
  std::vector<BlockId> b;
  ASSERT_TRUE(pool.Allocate(1, &b));
  EXPECT_DEATH(pool.Evict(b[0]), "in use");
  pool.EnterCache(b[0]);
  EXPECT_DEATH(pool.EnterCache(b[0]), "check failed");
  EXPECT_DEATH(pool.Evict(b[0]), "in use");
}

// The pool beside the most naive bookkeeping there is.
TEST(BlockPool, RandomOperationsKeepEveryBlockInOneState) {
  constexpr int32_t kBlocks = 37;
  BlockPool pool(kBlocks);
  std::vector<int> refs(kBlocks, 0);
  std::vector<bool> cached(kBlocks, false);
  std::mt19937 random(1);
  for (int op = 0; op < kOperations; ++op) {
    const BlockId b(static_cast<int32_t>(random() % kBlocks));
    const auto i = static_cast<size_t>(b.value);
    switch (random() % 5) {
      case 0: {
        std::vector<BlockId> got;
        const auto count = static_cast<int32_t>(random() % 4);
        const bool possible = count <= pool.num_free();
        ASSERT_EQ(pool.Allocate(count, &got), possible);
        ASSERT_EQ(got.size(), possible ? static_cast<size_t>(count) : 0u);
        for (const BlockId block : got) {
          const auto g = static_cast<size_t>(block.value);
          ASSERT_TRUE(refs[g] == 0 && !cached[g]) << "handed out twice";
          refs[g] = 1;
        }
        break;
      }
      case 1:
        if (refs[i] > 0 || cached[i]) pool.Ref(b), ++refs[i];
        break;
      case 2:
        if (refs[i] > 0) pool.Unref(b), --refs[i];
        break;
      case 3:
        if (refs[i] > 0 && !cached[i]) pool.EnterCache(b), cached[i] = true;
        break;
      case 4:
        if (refs[i] == 0 && cached[i]) pool.Evict(b), cached[i] = false;
        break;
    }
    ASSERT_EQ(pool.ref_count(b), refs[i]);
    ASSERT_EQ(pool.in_cache(b), cached[i]);
    ASSERT_EQ(pool.num_free() + pool.num_cached() + pool.num_referenced(), kBlocks);
  }
  int free = 0;
  for (size_t i = 0; i < refs.size(); ++i) free += refs[i] == 0 && !cached[i];
  EXPECT_EQ(pool.num_free(), free);
}

}  // namespace
}  // namespace dlcore

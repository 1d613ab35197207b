#include "kv/kv_manager.h"

#include <numeric>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "kv/cache_group.h"

namespace dlcore {
namespace {

using Tokens = std::vector<TokenId>;

constexpr int32_t kBlockSize = 4;

KvManager::Options Options(int32_t num_blocks, bool caching = true) {
  return {num_blocks, kBlockSize, caching, {1, 2}};
}

Tokens Count(int32_t length, TokenId first = 0) {
  Tokens tokens(static_cast<size_t>(length));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// A sequence that computes its prompt and holds it until released.
struct Holder {
  Holder(KvManager* manager, Tokens t, std::string_view salt = "")
      : kv(manager), tokens(std::move(t)) {
    kv->Attach(&cache, salt, 64);
  }
  ~Holder() {
    kv->Release(&cache);
    kv->DropRetired(&retired);
    kv->Detach(&cache);
  }
  int32_t Hit() {
    return kv->AcquirePrefix(&cache, View(), static_cast<int32_t>(tokens.size()) / kBlockSize);
  }
  bool Compute() {
    if (!kv->Extend(&cache, static_cast<int32_t>(tokens.size()))) return false;
    Publish();
    return true;
  }
  void Publish() { kv->Publish(&cache, View(), static_cast<int32_t>(tokens.size()), &retired); }
  TokenView View() const { return {tokens, {}}; }

  KvManager* kv;
  Tokens tokens;
  SequenceCache cache;
  std::vector<BlockId> retired;
};

TEST(KvManager, FullBlocksAreFoundAgainAndPartialOnesAreNot) {
  KvManager kv(Options(8));
  { EXPECT_TRUE(Holder(&kv, Count(10)).Compute()); }
  EXPECT_EQ(kv.pool().num_cached(), 2);
  EXPECT_EQ(kv.pool().num_free(), 6);
  Holder again(&kv, Count(12));
  EXPECT_EQ(again.Hit(), 2);
  EXPECT_EQ(kv.pool().num_referenced(), 2);
}

TEST(KvManager, SaltsAndSwitchedOffCachingDoNotShare) {
  KvManager kv(Options(8));
  { EXPECT_TRUE(Holder(&kv, Count(8), "a").Compute()); }
  EXPECT_EQ(Holder(&kv, Count(8), "b").Hit(), 0);
  EXPECT_EQ(Holder(&kv, Count(8), "a").Hit(), 2);
  KvManager off(Options(8, false));
  { EXPECT_TRUE(Holder(&off, Count(8)).Compute()); }
  EXPECT_EQ(off.pool().num_free(), 8);
  EXPECT_EQ(Holder(&off, Count(8)).Hit(), 0);
}

TEST(KvManager, ExtendEvictsWhatNobodyUsesAndIsAllOrNothing) {
  KvManager kv(Options(4));
  { EXPECT_TRUE(Holder(&kv, Count(12)).Compute()); }
  Holder other(&kv, Count(20, 100));
  EXPECT_FALSE(kv.Extend(&other.cache, 20));
  EXPECT_EQ(kv.pool().num_cached(), 3) << "a failed Extend evicts nothing";
  EXPECT_TRUE(kv.Extend(&other.cache, 16));
  EXPECT_EQ(kv.pool().num_cached(), 0);
  EXPECT_EQ(other.cache.table.size(), 4);
}

TEST(KvManager, EqualBlocksComputedSideBySideBecomeOne) {
  KvManager kv(Options(8));
  Holder a(&kv, Count(8));
  Holder b(&kv, Count(8));
  EXPECT_TRUE(kv.Extend(&a.cache, 8));
  EXPECT_TRUE(kv.Extend(&b.cache, 8));
  b.cache.table.MarkSent();
  a.Publish();
  b.Publish();
  EXPECT_EQ(a.cache.table[0], b.cache.table[0]);
  EXPECT_EQ(a.cache.table[1], b.cache.table[1]);
  EXPECT_EQ(b.cache.table.num_sent(), 0) << "the device must hear of the change";
  EXPECT_EQ(b.retired.size(), 2u);
  EXPECT_EQ(kv.pool().num_referenced(), 4) << "a plan in flight may read the duplicates";
  kv.DropRetired(&b.retired);
  EXPECT_EQ(kv.pool().num_referenced(), 2);
}

TEST(KvManager, GeneratedTokensContinueThePromptsChain) {
  KvManager kv(Options(8));
  const Tokens prompt = Count(6);
  const Tokens output = Count(6, 6);
  SequenceCache cache;
  std::vector<BlockId> retired;
  kv.Attach(&cache, "", 64);
  ASSERT_TRUE(kv.Extend(&cache, 12));
  kv.Publish(&cache, {prompt, std::span(output).first(1)}, 7, &retired);
  kv.Publish(&cache, {prompt, output}, 12, &retired);
  kv.Release(&cache);
  kv.Detach(&cache);
  EXPECT_EQ(Holder(&kv, Count(12)).Hit(), 3) << "the same tokens as one prompt";
}

TEST(CacheGroups, OnlyPagedGroupsAreKept) {
  CacheGroupSpec paged{CacheKind::kPaged, 2, 100, 0};
  CacheGroupSpec window{CacheKind::kWindow, 2, 100, 8};
  CacheGroupSpec state{CacheKind::kState, 2, 100, 0};
  EXPECT_TRUE(ValidateCacheGroups(std::vector{paged, paged}).ok());
  EXPECT_EQ(BytesPerBlock(std::vector{paged, paged}), 400);
  for (const CacheGroupSpec& bad : {window, state}) {
    const Status status = ValidateCacheGroups(std::vector{paged, bad});
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find("cache_groups[1].kind"), std::string::npos);
  }
}

}  // namespace
}  // namespace dlcore

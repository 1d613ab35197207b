#include "kv/radix_tree.h"

#include <map>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace dlcore {
namespace {

constexpr int32_t kBlockSize = 2;

using Tokens = std::vector<TokenId>;

// A tree with its pool. Sequences reference every block on their path, as the
// KV manager makes them.
class RadixTreeTest : public ::testing::Test {
 protected:
  explicit RadixTreeTest(int32_t num_blocks = 16) : pool(num_blocks), tree(&pool, kBlockSize) {}

  std::vector<Hash128> HashesOf(const std::string& salt, const Tokens& tokens) const {
    std::vector<Hash128> hashes;
    Hash128 parent = hasher.Root(salt);
    for (size_t at = 0; at + kBlockSize <= tokens.size(); at += kBlockSize) {
      parent = hasher.Block(parent, std::span(tokens).subspan(at, kBlockSize));
      hashes.push_back(parent);
    }
    return hashes;
  }

  // Caches all full blocks of `tokens`, unreferenced; returns their ids.
  std::vector<BlockId> Cache(const std::string& salt, const Tokens& tokens) {
    RadixTree::Root* root = tree.AcquireRoot(salt);
    const auto hashes = HashesOf(salt, tokens);
    std::vector<BlockId> path;
    BlockId parent = kNoBlock;
    for (size_t i = 0; i < hashes.size(); ++i) {
      std::vector<BlockId> own;
      EXPECT_TRUE(pool.Allocate(1, &own));
      const auto block = std::span(tokens).subspan(i * kBlockSize, kBlockSize);
      const BlockId kept = tree.Insert(root, parent, hashes[i], block, own[0]);
      if (kept != own[0]) {
        pool.Ref(kept);
        pool.Unref(own[0]);
      }
      path.push_back(parent = kept);
    }
    for (const BlockId b : path) pool.Unref(b);
    tree.Touch(path.back());
    tree.ReleaseRoot(root);
    return path;
  }

  std::vector<BlockId> Find(const std::string& salt, const Tokens& tokens) {
    RadixTree::Root* root = tree.AcquireRoot(salt);
    std::vector<BlockId> out;
    tree.Match(root, HashesOf(salt, tokens), {tokens, {}}, &out);
    tree.ReleaseRoot(root);
    return out;
  }

  BlockHasher hasher{1, 2};
  BlockPool pool;
  RadixTree tree;
};

TEST_F(RadixTreeTest, FindsTheLongestCachedPrefix) {
  // 1 2 | 3 4 | 5 6
  const auto path = Cache("", {1, 2, 3, 4, 5, 6});
  EXPECT_EQ(Find("", {1, 2, 3, 4, 5, 6}), path);
  EXPECT_EQ(Find("", {1, 2, 3, 4, 5, 6, 7, 8}), path);
  EXPECT_EQ(Find("", {1, 2, 3, 4, 9, 9}).size(), 2u);
  EXPECT_EQ(Find("", {1, 2, 3}).size(), 1u);
  EXPECT_TRUE(Find("", {9, 2, 3, 4}).empty());
}

TEST_F(RadixTreeTest, ARunWithoutABranchIsOneNode) {
  Cache("", {1, 2, 3, 4, 5, 6, 7, 8});
  EXPECT_EQ(tree.num_nodes(), 1);
}

TEST_F(RadixTreeTest, BranchingSplitsTheRunAndSharesThePrefix) {
  // 1 2 | 3 4 +- 5 6 | 7 8
  //           +- 9 9
  const auto a = Cache("", {1, 2, 3, 4, 5, 6, 7, 8});
  const auto b = Cache("", {1, 2, 3, 4, 9, 9});
  EXPECT_EQ(tree.num_nodes(), 3);
  EXPECT_EQ(b[0], a[0]);
  EXPECT_EQ(b[1], a[1]);
  EXPECT_EQ(Find("", {1, 2, 3, 4, 5, 6, 7, 8}), a);
  EXPECT_EQ(Find("", {1, 2, 3, 4, 9, 9}), b);
  EXPECT_EQ(pool.num_cached(), 5);
}

TEST_F(RadixTreeTest, NeverAHitAcrossSalts) {
  Cache("a", {1, 2, 3, 4});
  EXPECT_TRUE(Find("b", {1, 2, 3, 4}).empty());
  EXPECT_TRUE(Find("", {1, 2, 3, 4}).empty());
  EXPECT_EQ(Find("a", {1, 2, 3, 4}).size(), 2u);
}

TEST_F(RadixTreeTest, EqualHashesAreNoHitWithoutEqualTokensAndSalt) {
  RadixTree::Root* a = tree.AcquireRoot("a");
  RadixTree::Root* b = tree.AcquireRoot("b");
  const Hash128 same{42, 42};
  std::vector<BlockId> own;
  ASSERT_TRUE(pool.Allocate(3, &own));
  const Tokens one = {1, 2};
  const Tokens two = {3, 4};
  EXPECT_EQ(tree.Insert(a, kNoBlock, same, one, own[0]), own[0]);
  EXPECT_EQ(tree.Insert(a, kNoBlock, same, two, own[1]), kNoBlock);
  EXPECT_EQ(tree.Insert(b, kNoBlock, same, one, own[2]), kNoBlock);
  std::vector<BlockId> out;
  EXPECT_EQ(tree.Match(a, {&same, 1}, {two, {}}, &out), 0);
  EXPECT_EQ(tree.Match(b, {&same, 1}, {one, {}}, &out), 0);
  EXPECT_EQ(tree.Match(a, {&same, 1}, {one, {}}, &out), 1);
  tree.ReleaseRoot(a);
  tree.ReleaseRoot(b);
}

TEST_F(RadixTreeTest, EvictsTailsOfTheLeastRecentlyUsedLeaf) {
  const auto old_path = Cache("", {1, 2, 3, 4});
  const auto new_path = Cache("", {5, 6, 7, 8});
  EXPECT_EQ(tree.Evict(1), 1);
  EXPECT_FALSE(pool.in_cache(old_path[1]));
  EXPECT_EQ(Find("", {1, 2, 3, 4}).size(), 1u);
  EXPECT_EQ(tree.Evict(2), 2);
  EXPECT_TRUE(Find("", {1, 2, 3, 4}).empty());
  EXPECT_EQ(Find("", {5, 6, 7, 8}).size(), 1u);
  EXPECT_EQ(tree.Evict(10), 1);
  EXPECT_EQ(tree.num_nodes(), 0);
  EXPECT_EQ(tree.num_roots(), 0);
}

TEST_F(RadixTreeTest, ASharedPrefixOutlivesItsBranches) {
  Cache("", {1, 2, 3, 4});
  Cache("", {1, 2, 5, 6});
  Cache("", {7, 7});
  // Age decides among leaves; the shared block goes only when both branches went.
  EXPECT_EQ(tree.Evict(2), 2);
  EXPECT_EQ(Find("", {1, 2}).size(), 1u);
  EXPECT_EQ(Find("", {7, 7}).size(), 1u);
}

TEST_F(RadixTreeTest, BlocksInUseAreNeverEvicted) {
  const auto path = Cache("", {1, 2, 3, 4, 5, 6});
  pool.Ref(path[0]);
  pool.Ref(path[1]);
  tree.Touch(path[1]);
  EXPECT_EQ(tree.Evict(10), 1);
  EXPECT_EQ(Find("", {1, 2, 3, 4, 5, 6}).size(), 2u);
  pool.Unref(path[0]);
  pool.Unref(path[1]);
  tree.Touch(path[1]);
  EXPECT_EQ(tree.Evict(10), 2);
}

// Random users come, match, extend and leave, and blocks are evicted, beside a
// plain map from (salt, tokens of the whole prefix) to block.
class RadixTreeRandom : public RadixTreeTest, public ::testing::WithParamInterface<bool> {
 protected:
  static constexpr int kOperations = 200'000;

  struct User {
    std::string salt;
    Tokens tokens;
    RadixTree::Root* root = nullptr;
    std::vector<BlockId> path;  // all referenced
    bool blocked = false;       // a collision kept a block out
  };
  using Key = std::pair<std::string, Tokens>;

  RadixTreeRandom() : RadixTreeTest(40) {}

  // Weak hashes collide all the time; the tokens must still decide.
  Hash128 HashOf(const Key& key) const {
    Hash128 h = hasher.Root(key.first);
    h = hasher.Block(h, key.second);
    return GetParam() ? Hash128{h.lo % 19, 0} : h;
  }
  static Key Prefix(const User& user, size_t blocks) {
    return {user.salt, Tokens(user.tokens.begin(),
                              user.tokens.begin() + static_cast<int64_t>(blocks) * kBlockSize)};
  }

  void Start() {
    User user;
    user.salt = random() % 3 == 0 ? "s" : "";
    for (size_t i = 0; i < 8 * kBlockSize; ++i) {
      user.tokens.push_back(i % 2 == 0 ? static_cast<TokenId>(random() % 2) : 5);
    }
    user.root = tree.AcquireRoot(user.salt);
    std::vector<Hash128> hashes;
    size_t longest = 0;
    bool unbroken = true;
    for (size_t n = 1; n <= 8; ++n) {
      const Key key = Prefix(user, n);
      hashes.push_back(HashOf(key));
      unbroken = unbroken && model.contains(key);
      if (unbroken) longest = n;
    }
    tree.Match(user.root, hashes, {user.tokens, {}}, &user.path);
    ASSERT_EQ(user.path.size(), longest);
    for (size_t i = 0; i < user.path.size(); ++i) {
      ASSERT_EQ(model.at(Prefix(user, i + 1)), user.path[i]) << "a hit with other tokens or salt";
      pool.Ref(user.path[i]);
    }
    if (!user.path.empty()) tree.Touch(user.path.back());
    users.push_back(std::move(user));
  }

  void Extend(User* user) {
    if (user->blocked || user->path.size() == 8) return;
    std::vector<BlockId> own;
    if (pool.num_free() == 0) Evict(1);
    if (!pool.Allocate(1, &own)) return;
    const size_t n = user->path.size() + 1;
    const Key key = Prefix(*user, n);
    const auto block = std::span(key.second).last(kBlockSize);
    const BlockId parent = n == 1 ? kNoBlock : user->path.back();
    const BlockId kept = tree.Insert(user->root, parent, HashOf(key), block, own[0]);
    const auto there = model.find(key);
    if (there != model.end()) {
      ASSERT_EQ(kept, there->second);
    } else if (kept == kNoBlock) {
      ASSERT_TRUE(GetParam()) << "only colliding hashes keep a block out";
      user->blocked = true;
    } else {
      ASSERT_EQ(kept, own[0]);
      model.emplace(key, kept);
    }
    if (kept != own[0]) {
      if (kept != kNoBlock) pool.Ref(kept);
      pool.Unref(own[0]);
    }
    if (kept != kNoBlock) user->path.push_back(kept);
  }

  void Leave(size_t i) {
    User& user = users[i];
    for (const BlockId b : user.path) pool.Unref(b);
    if (!user.path.empty()) tree.Touch(user.path.back());
    tree.ReleaseRoot(user.root);
    users.erase(users.begin() + static_cast<int64_t>(i));
  }

  void Evict(int32_t count) {
    const int32_t unreferenced = pool.num_cached();
    ASSERT_EQ(tree.Evict(count), std::min(count, unreferenced)) << "an unreferenced block stayed";
    std::erase_if(model, [&](const auto& entry) { return !pool.in_cache(entry.second); });
    // No orphans: whatever is cached has its whole prefix cached.
    for (const auto& [key, block] : model) {
      if (key.second.size() == kBlockSize) continue;
      Key parent = key;
      parent.second.resize(key.second.size() - kBlockSize);
      ASSERT_TRUE(model.contains(parent));
    }
  }

  std::mt19937 random{11};
  std::map<Key, BlockId> model;
  std::vector<User> users;
};

TEST_P(RadixTreeRandom, AgreesWithAPlainMap) {
  for (int op = 0; op < kOperations; ++op) {
    const auto kind = random() % 100;
    const size_t user = users.empty() ? 0 : random() % users.size();
    if (kind < 15 && users.size() < 6) {
      Start();
    } else if (kind < 80 && !users.empty()) {
      Extend(&users[user]);
    } else if (kind < 92 && !users.empty()) {
      Leave(user);
    } else {
      Evict(static_cast<int32_t>(random() % 6));
    }
    if (HasFatalFailure()) FAIL() << "operation " << op;
    ASSERT_EQ(pool.num_free() + pool.num_cached() + pool.num_referenced(), pool.num_blocks());
  }
  while (!users.empty()) Leave(0);
  Evict(1000);
  EXPECT_EQ(pool.num_free(), pool.num_blocks());
  EXPECT_EQ(tree.num_nodes(), 0);
  EXPECT_EQ(tree.num_roots(), 0);
}

INSTANTIATE_TEST_SUITE_P(Hashes, RadixTreeRandom, ::testing::Values(false, true),
                         [](const auto& param) { return param.param ? "Colliding" : "Strong"; });

}  // namespace
}  // namespace dlcore

#include "base/hash.h"

#include <array>
#include <numeric>
#include <unordered_set>
#include <vector>

#include <gtest/gtest.h>

namespace dlcore {
namespace {

// Key and messages of the authors' published vectors: key 00 01 .. 0f, message 00 01 .. n-1.
constexpr uint64_t kVectorK0 = 0x0706050403020100u;
constexpr uint64_t kVectorK1 = 0x0f0e0d0c0b0a0908u;

Hash128 Vector24(size_t length) {
  std::vector<std::byte> message(length);
  for (size_t i = 0; i < length; ++i) message[i] = static_cast<std::byte>(i);
  return SipHash128(2, 4, kVectorK0, kVectorK1, message);
}

TEST(SipHash128, MatchesThePublishedVectors) {
  // a3817f04ba25a8e66df67214c7550293, da87c1d86b99af44347659119b22fc45
  EXPECT_EQ(Vector24(0), (Hash128{0xe6a825ba047f81a3u, 0x930255c71472f66du}));
  EXPECT_EQ(Vector24(1), (Hash128{0x44af996bd8c187dau, 0x45fc229b11597634u}));
}

TEST(SipHash128, EveryByteAndTheLengthMatter) {
  std::unordered_set<Hash128> seen;
  std::vector<std::byte> message(20);
  for (size_t i = 0; i < message.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      auto changed = message;
      changed[i] ^= static_cast<std::byte>(1 << bit);
      EXPECT_TRUE(seen.insert(SipHash128(1, 3, 1, 2, changed)).second);
    }
  }
  for (size_t n = 0; n <= message.size(); ++n) {
    EXPECT_TRUE(seen.insert(SipHash128(1, 3, 1, 2, std::span(message).first(n))).second);
  }
}

TEST(BlockHasher, BlockDependsOnKeyParentAndEveryToken) {
  const BlockHasher hasher(7, 11);
  const Hash128 parent{3, 4};
  std::vector<TokenId> tokens(16);
  std::iota(tokens.begin(), tokens.end(), 100);
  const Hash128 a = hasher.Block(parent, tokens);
  EXPECT_EQ(a, hasher.Block(parent, tokens));
  EXPECT_NE(a, hasher.Block({4, 3}, tokens));
  EXPECT_NE(a, BlockHasher(7, 12).Block(parent, tokens));
  EXPECT_NE(a, hasher.Block(parent, std::span(tokens).first(15)));
}

TEST(BlockHasher, RootsDifferBySaltAndExtra) {
  const BlockHasher hasher(7, 11);
  const std::array<Hash128, 1> lora = {Hash128{5, 6}};
  std::unordered_set<Hash128> roots = {
      hasher.Root(""),       hasher.Root("a"),       hasher.Root("b"),
      hasher.Root("", lora), hasher.Root("a", lora), hasher.Root(std::string_view("\0", 1))};
  EXPECT_EQ(roots.size(), 6u);
}

TEST(DrawHashKey, IsNotConstant) {
  uint64_t a[2], b[2];
  DrawHashKey(a);
  DrawHashKey(b);
  EXPECT_NE((Hash128{a[0], a[1]}), (Hash128{b[0], b[1]}));
}

}  // namespace
}  // namespace dlcore

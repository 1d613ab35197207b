#include "dlcore/token_list.h"

#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace dlcore {
namespace {

TEST(TokenList, IsAVectorOfTokensInsideAndOutsideTheObject) {
  TokenList list;
  std::vector<TokenId> same;
  for (TokenId token = 0; token < 20; ++token) {
    EXPECT_TRUE(std::ranges::equal(list, same));
    const TokenList copy = list;
    EXPECT_EQ(copy, list);
    list.push_back(token * 3);
    same.push_back(token * 3);
    EXPECT_EQ(list.back(), same.back());
    EXPECT_EQ(list[list.size() / 2], same[same.size() / 2]);
  }
  list.clear();
  EXPECT_TRUE(list.empty());
}

TEST(TokenList, MovedFromIsUsableAgain) {
  TokenList a = {1, 2, 3, 4, 5, 6};
  const TokenList b = std::move(a);
  EXPECT_EQ(b.size(), 6u);
  a.clear();
  a.append(b);
  EXPECT_EQ(a, b);
}

}  // namespace
}  // namespace dlcore

#include "step/token_mask.h"

#include <memory>
#include <set>
#include <vector>

#include <gtest/gtest.h>

namespace dlcore {
namespace {

constexpr int32_t kVocab = 70;

EngineOptions Options() {
  EngineOptions options;
  options.limits.vocab_size = kVocab;
  options.eos_token_ids = {1};
  return options;
}

Sequence Make(const SamplingParams& sampling, std::shared_ptr<TokenConstraint> rule = nullptr) {
  Request request;
  request.prompt = {10, 11};
  request.sampling = sampling;
  request.constraint = std::move(rule);
  return {std::move(request), 0, Options()};
}

std::set<TokenId> Allowed(const Sequence& sequence, int32_t index) {
  std::vector<uint32_t> mask(3, 0xabababab);
  BuildMask(sequence, index, kVocab, mask);
  std::set<TokenId> allowed;
  for (TokenId t = 0; t < 96; ++t) {
    if ((mask[static_cast<size_t>(t) / 32] >> (t % 32) & 1) != 0) allowed.insert(t);
  }
  return allowed;
}

std::set<TokenId> AllBut(std::set<TokenId> forbidden) {
  std::set<TokenId> all;
  for (TokenId t = 0; t < kVocab; ++t) {
    if (!forbidden.contains(t)) all.insert(t);
  }
  return all;
}

TEST(TokenMask, MinTokensForbidsStoppingUntilReached) {
  SamplingParams p;
  p.min_tokens = 2;
  p.stop_token_ids = {7};
  const Sequence sequence = Make(p);
  EXPECT_TRUE(NeedsMask(sequence, 1));
  EXPECT_FALSE(NeedsMask(sequence, 2));
  EXPECT_EQ(Allowed(sequence, 1), AllBut({1, 7}));
}

TEST(TokenMask, AllowedTokensAreTheOnlyOnes) {
  SamplingParams p;
  p.allowed_token_ids = {0, 31, 32, 69};
  EXPECT_EQ(Allowed(Make(p), 0), (std::set<TokenId>{0, 31, 32, 69}));
}

TEST(TokenMask, ABadWordIsForbiddenWhereItWouldBeCompleted) {
  SamplingParams p;
  p.bad_words = {{5}, {20, 21, 22}, {11, 30}};
  Sequence sequence = Make(p);
  EXPECT_EQ(Allowed(sequence, 0), AllBut({5})) << "the prompt does not count";
  sequence.AppendOutput(20);
  EXPECT_EQ(Allowed(sequence, 1), AllBut({5}));
  sequence.AppendOutput(21);
  EXPECT_EQ(Allowed(sequence, 2), AllBut({5, 22}));
  sequence.AppendOutput(3);
  EXPECT_EQ(Allowed(sequence, 3), AllBut({5}));
}

class LowHalf final : public TokenConstraint {
 public:
  void Advance(std::span<const TokenId>) override {}
  bool Ready() const override { return true; }
  std::span<const uint32_t> Mask() const override { return mask_; }
  bool Finished() const override { return false; }

 private:
  std::vector<uint32_t> mask_ = {~0u, 0u, 0u};
};

TEST(TokenMask, EveryRuleApplies) {
  SamplingParams p;
  p.allowed_token_ids = {1, 2, 3, 40};
  p.bad_words = {{2}};
  p.min_tokens = 1;
  EXPECT_EQ(Allowed(Make(p, std::make_shared<LowHalf>()), 0), (std::set<TokenId>{3}));
}

TEST(TokenMask, AFreeSequenceNeedsNone) { EXPECT_FALSE(NeedsMask(Make({}), 0)); }

}  // namespace
}  // namespace dlcore

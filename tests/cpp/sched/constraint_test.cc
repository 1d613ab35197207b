// Sequences whose tokens are constrained, and the steps they wait for.
#include <memory>

#include <gtest/gtest.h>

#include "sched/scheduler.h"
#include "tests/cpp/sched/script.h"

namespace dlcore::testing {
namespace {

// Ready and finished when the test says so.
class SwitchConstraint final : public TokenConstraint {
 public:
  explicit SwitchConstraint(size_t words) : mask_(words, ~0u) {}
  void Advance(std::span<const TokenId> tokens) override {
    ready = false;
    advanced += static_cast<int>(tokens.size());
  }
  bool Ready() const override { return ready; }
  std::span<const uint32_t> Mask() const override { return mask_; }
  bool Finished() const override { return finished; }

  bool ready = false;
  bool finished = false;
  int advanced = 0;

 private:
  std::vector<uint32_t> mask_;
};

TEST(Scheduler, AConstrainedSequenceWaitsForItsMaskAndNobodyElseDoes) {
  Script s(SmallOptions());
  auto rule = std::make_shared<SwitchConstraint>(32);
  Request constrained = MakeRequest(1, 3, 10);
  constrained.constraint = rule;
  s.Submit(std::move(constrained));
  s.Submit(MakeRequest(2, 3, 10));
  const StepPlan& plan = s.scheduler.NextPlan();
  EXPECT_EQ(Script::Ids(plan), (Ids{1, 2}));
  EXPECT_FALSE(plan.sequences[0].samples) << "the prompt may run; sampling needs the mask";
  s.Commit(5);
  EXPECT_EQ(Script::Ids(s.scheduler.NextPlan()), (Ids{2}));
  s.Commit(5);
  rule->ready = true;
  EXPECT_EQ(Script::Ids(s.scheduler.NextPlan()), (Ids{1, 2}));
  EXPECT_EQ(Script::Ids(s.scheduler.NextPlan()), (Ids{2})) << "its next mask needs this token";
  s.Commit(5);
  EXPECT_EQ(rule->advanced, 1);
  rule->ready = rule->finished = true;
  s.Outputs();
  EXPECT_EQ(Script::Ids(s.scheduler.NextPlan()), (Ids{2}));
  const auto out = s.Outputs();
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(out[0].id, RequestId(1));
  EXPECT_EQ(out[0].finish_reason, FinishReason::kStop);
}

TEST(Scheduler, OnlyBadWordsOfSeveralTokensWaitForTheCommit) {
  Script s(SmallOptions());
  Request one = MakeRequest(1, 3, 10);
  one.sampling.bad_words = {{4}};
  Request two = MakeRequest(2, 3, 10);
  two.sampling.bad_words = {{4, 5}};
  s.Submit(std::move(one));
  s.Submit(std::move(two));
  EXPECT_EQ(Script::Ids(s.scheduler.NextPlan()), (Ids{1, 2}));
  EXPECT_EQ(Script::Ids(s.scheduler.NextPlan()), (Ids{1}));
}

class RecordingConstraint final : public TokenConstraint {
 public:
  void Advance(std::span<const TokenId> tokens) override {
    seen.insert(seen.end(), tokens.begin(), tokens.end());
  }
  bool Ready() const override { return true; }
  std::span<const uint32_t> Mask() const override { return {}; }
  bool Finished() const override { return false; }

  std::vector<TokenId> seen;
};

TEST(Scheduler, AConstraintIsAdvancedByResumedTokens) {
  Script s(SmallOptions());
  Request request = MakeRequest(1, 3, 10);
  const auto rule = std::make_shared<RecordingConstraint>();
  request.constraint = rule;
  request.resume_token_ids = {5, 6};
  s.Submit(request);
  EXPECT_EQ(rule->seen, (std::vector<TokenId>{5, 6}));
}

}  // namespace
}  // namespace dlcore::testing

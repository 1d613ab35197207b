// Requests that go on where another node stopped.
#include <gtest/gtest.h>

#include "sched/scheduler.h"
#include "tests/cpp/sched/script.h"

namespace dlcore::testing {
namespace {

TEST(Scheduler, ResumedTokensAreComputedWithThePromptAndNotHandedOutAgain) {
  Script s(SmallOptions());
  Request request = MakeRequest(1, 3, 4);
  request.resume_token_ids = {5, 6};
  s.Submit(request);
  const StepPlan& plan = s.scheduler.NextPlan();
  EXPECT_EQ(plan.num_tokens, 5);
  EXPECT_TRUE(plan.sequences[0].samples);
  s.Commit(7);
  s.scheduler.NextPlan();
  s.Commit(8);
  const auto outputs = s.Outputs();
  ASSERT_EQ(outputs.size(), 2u);
  EXPECT_EQ(outputs[0].tokens, TokenList({7}));
  EXPECT_EQ(outputs[1].tokens, TokenList({8}));
  EXPECT_EQ(outputs[1].finish_reason, FinishReason::kLength) << "max_tokens counts resumed ones";
}

TEST(Scheduler, ResumedTokensCountForMinTokens) {
  EngineOptions options = SmallOptions();
  options.eos_token_ids = {9};
  Script s(options);
  Request request = MakeRequest(1, 3, 10);
  request.sampling.min_tokens = 2;
  request.resume_token_ids = {5, 6};
  s.Submit(request);
  s.scheduler.NextPlan();
  s.Commit(9);
  EXPECT_EQ(s.Outputs()[0].finish_reason, FinishReason::kStop);
}

}  // namespace
}  // namespace dlcore::testing

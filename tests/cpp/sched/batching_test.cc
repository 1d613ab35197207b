// What a step is made of: who is planned, in which order, how much of each.
#include <gtest/gtest.h>

#include "sched/scheduler.h"
#include "tests/cpp/sched/script.h"

namespace dlcore::testing {
namespace {

TEST(Scheduler, DecodesGoFirstAndPrefillFillsTheRest) {
  Script s(SmallOptions());
  s.Submit(MakeRequest(1, 3, 10));
  s.scheduler.NextPlan();
  s.Commit(7);
  s.Submit(MakeRequest(2, 40, 10));
  const StepPlan& plan = s.scheduler.NextPlan();
  ASSERT_EQ(Script::Ids(plan), (Ids{1, 2}));
  EXPECT_EQ(plan.kind, StepKind::kMixed);
  EXPECT_EQ(plan.sequences[0].num_tokens, 1);
  EXPECT_EQ(plan.sequences[1].num_tokens, 15);
  EXPECT_FALSE(plan.sequences[1].samples);
  EXPECT_EQ(plan.num_rows, 1);
}

TEST(Scheduler, AnAllDecodePlanIsOfKindDecode) {
  Script s(SmallOptions());
  s.Submit(MakeRequest(1, 3, 10));
  s.Submit(MakeRequest(2, 3, 10));
  EXPECT_EQ(s.scheduler.NextPlan().kind, StepKind::kMixed);
  const StepPlan& second = s.scheduler.NextPlan();
  EXPECT_EQ(second.kind, StepKind::kDecode);
  EXPECT_EQ(second.key(), (StepKey{StepKind::kDecode, SamplerVariant::kGreedy, 2, 2, 0}));
}

TEST(Scheduler, LongPromptsAreCutAtTheThreshold) {
  EngineOptions options = SmallOptions();
  options.long_prefill_token_threshold = 5;
  Script s(options);
  s.Submit(MakeRequest(1, 12, 10));
  EXPECT_EQ(s.scheduler.NextPlan().num_tokens, 5);
  EXPECT_EQ(s.scheduler.NextPlan().num_tokens, 5);
  s.Commit(0);
  EXPECT_EQ(s.scheduler.NextPlan().num_tokens, 2);
}

TEST(Scheduler, PrefillBesideDecodesIsBounded) {
  EngineOptions options = SmallOptions();
  options.max_prefill_tokens_beside_decodes = 3;
  Script s(options);
  s.Submit(MakeRequest(1, 4, 10));
  EXPECT_EQ(s.scheduler.NextPlan().num_tokens, 4);  // nobody decodes yet: no bound
  s.Commit(0);
  s.Submit(MakeRequest(2, 7, 10));
  EXPECT_EQ(s.scheduler.NextPlan().num_tokens, 1 + 3);
  EXPECT_EQ(s.scheduler.NextPlan().num_tokens, 1 + 3);
  s.Commit(0);
  EXPECT_EQ(s.scheduler.NextPlan().num_tokens, 1 + 1);
}

TEST(Scheduler, StepsThatDecodeAreFilledToAMultipleThatGrowsWithTheDecodes) {
  EngineOptions options = SmallOptions();
  options.limits.max_num_batched_tokens = 40;
  options.mixed_step_tokens = 4;
  Script s(options);
  s.Submit(MakeRequest(1, 4, 20));
  EXPECT_EQ(s.scheduler.NextPlan().num_tokens, 4);
  s.Commit(0);
  s.Submit(MakeRequest(2, 5, 20));
  EXPECT_EQ(s.scheduler.NextPlan().num_tokens, 4);  // 3 x 1, rounded up
  EXPECT_EQ(s.scheduler.NextPlan().num_tokens, 1 + 2);
  s.Commit(0);
  s.Commit(0);
  s.Submit(MakeRequest(3, 15, 20));
  EXPECT_EQ(s.scheduler.NextPlan().num_tokens, 8);  // 3 x 2, rounded up
  EXPECT_EQ(s.scheduler.NextPlan().num_tokens, 8);
}

TEST(Scheduler, AnAnswerThatMayEndLastIsNotHeldBackWhereSomebodyWaitsForAll) {
  for (const bool hold_back : {true, false}) {
    for (const int32_t may_answer : {8, 9, 10}) {
      EngineOptions options = SmallOptions();
      options.mixed_step_tokens = 4;
      options.hold_back_last_answers = hold_back;
      Script s(options);
      s.Submit(MakeRequest(1, 4, 10));
      s.scheduler.NextPlan();
      s.Commit(0);
      s.Submit(MakeRequest(2, 12, may_answer));
      // The first has 9 to go: one as long would end with it, were its prompt done in this step.
      const bool whole = !hold_back && may_answer >= 9;
      EXPECT_EQ(s.scheduler.NextPlan().num_tokens, whole ? 1 + 12 : 4);
      if (whole) continue;
      // Chunks later it is the first that waits for the second.
      s.Commit(0);
      EXPECT_EQ(s.scheduler.NextPlan().num_tokens, !hold_back && may_answer == 8 ? 1 + 9 : 4);
    }
  }
}

TEST(Scheduler, TheSmallerOfBothBoundsBesideDecodesHolds) {
  EngineOptions options = SmallOptions();
  options.mixed_step_tokens = 8;
  options.max_prefill_tokens_beside_decodes = 3;
  Script s(options);
  s.Submit(MakeRequest(1, 4, 10));
  s.scheduler.NextPlan();
  s.Commit(0);
  s.Submit(MakeRequest(2, 12, 10));
  EXPECT_EQ(s.scheduler.NextPlan().num_tokens, 1 + 3);
}

TEST(Scheduler, WithoutChunkingAPromptIsPlannedWhole) {
  EngineOptions options = SmallOptions();
  options.enable_chunked_prefill = false;
  EXPECT_FALSE(options.Validate().ok());
  options.limits.max_num_batched_tokens = 64;
  ASSERT_TRUE(options.Validate().ok());
  Script s(options);
  s.Submit(MakeRequest(1, 40, 10));
  s.Submit(MakeRequest(2, 40, 10));
  EXPECT_EQ(Script::Ids(s.scheduler.NextPlan()), (Ids{1}));
  EXPECT_EQ(Script::Ids(s.scheduler.NextPlan()), (Ids{1, 2}));
}

TEST(Scheduler, PriorityThenArrivalDecidesWhoIsAdmitted) {
  EngineOptions options = SmallOptions();
  options.limits.max_num_seqs = 2;
  Script s(options);
  for (const auto& [id, priority] : {std::pair{1, 5}, {2, 1}, {3, 1}, {4, 0}}) {
    Request r = MakeRequest(static_cast<uint64_t>(id), 2, 10);
    r.priority = priority;
    s.Submit(std::move(r));
  }
  EXPECT_EQ(Script::Ids(s.scheduler.NextPlan()), (Ids{4, 2}));
}

TEST(Scheduler, PlansNeverGoBeyondMaxTokens) {
  Script s(SmallOptions());
  s.Submit(MakeRequest(1, 3, 2));
  EXPECT_FALSE(s.scheduler.NextPlan().empty());
  EXPECT_FALSE(s.scheduler.NextPlan().empty());
  s.Commit(5);
  EXPECT_TRUE(s.scheduler.NextPlan().empty());
  s.Commit(6);
  const auto out = s.Outputs();
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(out[1].tokens, (TokenList{6}));
  EXPECT_EQ(out[1].finish_reason, FinishReason::kLength);
  EXPECT_FALSE(s.scheduler.HasWork());
}

TEST(Scheduler, ASequenceStopsAtMaxModelLen) {
  EngineOptions options = SmallOptions();
  options.limits.max_model_len = 8;
  Simulation sim(options);
  ASSERT_TRUE(sim.scheduler().Submit(MakeRequest(1, 5, 100)).ok());
  sim.Drain();
  EXPECT_EQ(sim.received().at(1).tokens.size(), 3u);
  EXPECT_EQ(sim.received().at(1).reason, FinishReason::kLength);
}

TEST(Scheduler, AFullPromptHitStillComputesTheLastToken) {
  Simulation sim(SmallOptions());
  ASSERT_TRUE(sim.scheduler().Submit(MakeRequest(1, 16, 1)).ok());
  sim.Drain();
  Request again = MakeRequest(1, 16, 1);
  again.id = RequestId(2);
  ASSERT_TRUE(sim.scheduler().Submit(again).ok());
  ASSERT_TRUE(sim.Launch());
  EXPECT_EQ(sim.last_plan().num_tokens, 4) << "the last block is computed again";
  sim.Drain();
  EXPECT_EQ(sim.received().at(2).num_cached_tokens, 12);
  EXPECT_EQ(sim.received().at(2).tokens, sim.received().at(1).tokens);
  const SchedulerStats stats = sim.scheduler().Stats();
  EXPECT_EQ(stats.num_prefix_hits, 12u);
  EXPECT_EQ(stats.num_prefix_queries, 32u);
  EXPECT_EQ(stats.num_prompt_tokens, 32u);
}

TEST(Scheduler, RequestsRunningSideBySideShareWhatIsComputed) {
  Simulation sim(SmallOptions());
  ASSERT_TRUE(sim.scheduler().Submit(MakeRequest(1, 14, 20)).ok());
  ASSERT_TRUE(sim.Launch());
  sim.Commit();
  Request same = MakeRequest(1, 14, 20);
  same.id = RequestId(2);
  ASSERT_TRUE(sim.scheduler().Submit(same).ok());
  sim.Drain();
  EXPECT_EQ(sim.received().at(2).num_cached_tokens, 12);
}

TEST(Scheduler, PromptLogprobsSkipTheCacheAndFitTheRows) {
  Simulation sim(SmallOptions());
  ASSERT_TRUE(sim.scheduler().Submit(MakeRequest(1, 16, 1)).ok());
  sim.Drain();
  Request scored = MakeRequest(1, 16, 1);
  scored.id = RequestId(2);
  scored.sampling.prompt_logprobs = 1;
  ASSERT_TRUE(sim.scheduler().Submit(scored).ok());
  ASSERT_TRUE(sim.Launch());
  EXPECT_EQ(sim.last_plan().num_tokens, 4) << "four rows a step";
  sim.Drain();
  EXPECT_EQ(sim.received().at(2).num_cached_tokens, 0);
  EXPECT_EQ(sim.received().at(2).prompt_logprobs.size(), 15u);
}

}  // namespace
}  // namespace dlcore::testing

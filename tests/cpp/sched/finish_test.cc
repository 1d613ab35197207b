// How sequences end: stops, aborts, failures. Nothing of them stays.
#include <gtest/gtest.h>

#include "sched/scheduler.h"
#include "tests/cpp/sched/script.h"

namespace dlcore::testing {
namespace {

TEST(Scheduler, AStopFoundAtCommitDiscardsTheTokenPlannedAhead) {
  EngineOptions options = SmallOptions();
  options.eos_token_ids = {9};
  Script s(options);
  s.Submit(MakeRequest(1, 3, 10));
  s.scheduler.NextPlan();
  s.scheduler.NextPlan();
  s.Commit(9);
  auto out = s.Outputs();
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(out[0].finish_reason, FinishReason::kStop);
  EXPECT_EQ(out[0].stop_token, 9);
  EXPECT_EQ(out[0].tokens, (TokenList{9}));
  EXPECT_EQ(s.scheduler.Stats().num_referenced_blocks, 1) << "a plan in flight still writes it";
  s.Commit(5);
  EXPECT_TRUE(s.Outputs().empty());
  EXPECT_EQ(s.scheduler.Stats().num_referenced_blocks, 0);
  EXPECT_FALSE(s.scheduler.HasWork());
}

TEST(Scheduler, IgnoreEosAndMinTokensKeepASequenceGoing) {
  EngineOptions options = SmallOptions();
  options.eos_token_ids = {9};
  Script s(options);
  Request ignoring = MakeRequest(1, 3, 3);
  ignoring.sampling.ignore_eos = true;
  ignoring.sampling.stop_token_ids = {8};
  s.Submit(std::move(ignoring));
  for (const TokenId token : {9, 8}) {
    s.scheduler.NextPlan();
    s.Commit(token);
  }
  const auto out = s.Outputs();
  EXPECT_EQ(out[0].finish_reason, FinishReason::kNone);
  EXPECT_EQ(out[1].stop_token, 8);

  Request patient = MakeRequest(2, 3, 5);
  patient.sampling.min_tokens = 2;
  s.Submit(std::move(patient));
  EXPECT_EQ(s.scheduler.NextPlan().sampler, SamplerVariant::kFull) << "stop ids are masked";
  EXPECT_EQ(s.scheduler.NextPlan().sampler, SamplerVariant::kFull);
  s.Commit(1);
  EXPECT_EQ(s.scheduler.NextPlan().sampler, SamplerVariant::kGreedy);
}

TEST(Scheduler, AbortEndsAtOnceAndFreesWhenThePlanIsDone) {
  Script s(SmallOptions());
  s.Submit(MakeRequest(1, 3, 10));
  s.Submit(MakeRequest(2, 60, 3));
  s.scheduler.NextPlan();
  s.scheduler.Abort(RequestId(1));
  s.scheduler.Abort(RequestId(1));
  s.scheduler.Abort(RequestId(77));
  const auto out = s.Outputs();
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(out[0].finish_reason, FinishReason::kAbort);
  const int32_t before = s.scheduler.Stats().num_referenced_blocks;
  s.Commit(5);
  EXPECT_TRUE(s.Outputs().empty()) << "the sampled token of an aborted request is discarded";
  EXPECT_LT(s.scheduler.Stats().num_referenced_blocks, before);
  s.scheduler.Abort(RequestId(2));
  EXPECT_EQ(s.Outputs().size(), 1u);
  EXPECT_FALSE(s.scheduler.HasWork());
  EXPECT_EQ(s.scheduler.Stats().num_referenced_blocks, 0);
}

TEST(Scheduler, AWaitingRequestCanBeAborted) {
  EngineOptions options = SmallOptions();
  options.limits.max_num_seqs = 1;
  Script s(options);
  s.Submit(MakeRequest(1, 3, 10));
  s.Submit(MakeRequest(2, 3, 10));
  s.scheduler.NextPlan();
  s.scheduler.Abort(RequestId(2));
  ASSERT_EQ(s.Outputs().size(), 1u);
  EXPECT_EQ(s.scheduler.Stats().num_waiting, 0);
}

TEST(Scheduler, ASamplerThatFindsNoTokenFailsTheRequestAlone) {
  Script s(SmallOptions());
  s.Submit(MakeRequest(1, 3, 5));
  s.scheduler.NextPlan();
  s.Commit(-1);
  const auto out = s.Outputs();
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(out[0].finish_reason, FinishReason::kError);
  EXPECT_FALSE(s.scheduler.HasWork());
}

TEST(Scheduler, FailAllEndsEverythingAndForgetsPlansInFlight) {
  EngineOptions options = SmallOptions();
  options.limits.max_num_seqs = 1;
  Script s(options);
  s.Submit(MakeRequest(1, 3, 5));
  s.Submit(MakeRequest(2, 3, 5));
  s.scheduler.NextPlan();
  s.scheduler.NextPlan();
  s.scheduler.FailAll("device lost");
  const auto out = s.Outputs();
  ASSERT_EQ(out.size(), 2u);
  for (const SequenceOutput& o : out) EXPECT_EQ(o.error, "device lost");
  EXPECT_FALSE(s.scheduler.HasWork());
  EXPECT_EQ(s.scheduler.Stats().num_referenced_blocks, 0);
  s.Submit(MakeRequest(3, 3, 1));
  EXPECT_FALSE(s.scheduler.NextPlan().empty());
}

}  // namespace
}  // namespace dlcore::testing

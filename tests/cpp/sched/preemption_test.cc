// What happens when blocks run out.
#include <gtest/gtest.h>

#include "sched/scheduler.h"
#include "tests/cpp/sched/script.h"

namespace dlcore::testing {
namespace {

TEST(Scheduler, TheYoungestOfTheLowestPriorityIsPreemptedAndLosesNothing) {
  EngineOptions options = SmallOptions();
  options.num_kv_blocks = 6;  // 24 tokens for two sequences that want 20 each
  options.enable_prefix_caching = false;
  Simulation sim(options);
  Request first = MakeRequest(1, 8, 12);
  Request urgent = MakeRequest(2, 8, 12);
  urgent.priority = -1;
  ASSERT_TRUE(sim.scheduler().Submit(first).ok());
  ASSERT_TRUE(sim.scheduler().Submit(urgent).ok());
  sim.Drain();
  EXPECT_GT(sim.scheduler().Stats().num_preemptions, 0u);
  EXPECT_EQ(sim.received().at(1).tokens.size(), 12u);
  EXPECT_EQ(sim.received().at(2).tokens.size(), 12u);

  Simulation alone(options);
  ASSERT_TRUE(alone.scheduler().Submit(first).ok());
  alone.Drain();
  EXPECT_EQ(alone.received().at(1).tokens, sim.received().at(1).tokens);
}

TEST(Scheduler, OnlyAsManyArePreemptedAsNeeded) {
  EngineOptions options = SmallOptions();
  options.limits.max_num_batched_tokens = 64;
  options.num_kv_blocks = 9;  // eight for the prompts; then all four want one more
  Script s(options);
  for (uint64_t id = 1; id <= 4; ++id) s.Submit(MakeRequest(id, 8, 4));
  s.scheduler.NextPlan();
  EXPECT_EQ(Script::Ids(s.scheduler.NextPlan()), (Ids{1})) << "the others wait for blocks of 4";
  s.Commit(5);
  EXPECT_EQ(Script::Ids(s.scheduler.NextPlan()), (Ids{1, 2, 3}));
  EXPECT_EQ(s.scheduler.Stats().num_preemptions, 1u);
}

TEST(Scheduler, ASequenceThatOutgrowsThePoolAloneFailsClearly) {
  for (const size_t depth : {1u, 2u}) {
    EngineOptions options = SmallOptions();
    options.num_kv_blocks = 3;
    Simulation sim(options);
    ASSERT_TRUE(sim.scheduler().Submit(MakeRequest(1, 6, 40)).ok());
    ASSERT_TRUE(sim.scheduler().Submit(MakeRequest(2, 6, 2)).ok());
    sim.Drain(depth);
    EXPECT_EQ(sim.received().at(1).reason, FinishReason::kError);
    EXPECT_NE(sim.received().at(1).error.find("num_kv_blocks"), std::string::npos);
    EXPECT_EQ(sim.received().at(1).tokens.size(), 7u) << "what was generated is not lost";
    EXPECT_EQ(sim.received().at(2).reason, FinishReason::kLength);
  }
}

}  // namespace
}  // namespace dlcore::testing

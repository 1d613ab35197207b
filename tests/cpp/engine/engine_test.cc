#include "dlcore/engine.h"

#include <atomic>
#include <random>

#include <sys/resource.h>

#include "gtest/gtest.h"
#include "tests/cpp/engine/engine_harness.h"

namespace dlcore {
namespace {

using testing::EngineHarness;
using testing::FakeGpu;
using testing::NullToken;
using testing::SmallOptions;
using testing::WaitFor;

double ProcessCpuSeconds() {
  timespec used{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) * 1e-9;
}

// Every request's tokens, whole and in order: position p holds NullToken(p).
void ExpectNullText(EngineHarness& harness, uint64_t id, int32_t prompt_len, int32_t max_tokens) {
  const std::vector<TokenId>& tokens = harness.tokens(id);
  ASSERT_EQ(tokens.size(), static_cast<size_t>(max_tokens)) << "request " << id;
  for (int32_t i = 0; i < max_tokens; ++i) {
    ASSERT_EQ(tokens[static_cast<size_t>(i)], NullToken(prompt_len + i, 1000)) << "request " << id;
  }
  EXPECT_EQ(harness.last(id).finish_reason, FinishReason::kLength);
}

void RunManyRequests(EngineHarness& harness) {
  ASSERT_TRUE(harness.engine().Start().ok());
  constexpr uint64_t kRequests = 60;
  for (uint64_t id = 0; id < kRequests; ++id) {
    ASSERT_TRUE(harness.Submit(id, 1 + static_cast<int32_t>(id % 40), 1 + id % 100).ok());
  }
  ASSERT_TRUE(harness.PollUntilFinished(kRequests));
  for (uint64_t id = 0; id < kRequests; ++id) {
    ExpectNullText(harness, id, 1 + static_cast<int32_t>(id % 100),
                   1 + static_cast<int32_t>(id % 40));
  }
  EXPECT_TRUE(WaitFor([&] { return harness.engine().Stats().num_free_blocks == 512; }));
}

TEST(EngineTest, EveryTokenArrivesOnceAndInOrder) {
  EngineHarness harness;
  RunManyRequests(harness);
}

TEST(EngineTest, PipelinedStepsGiveTheSameTokens) {
  FakeGpu gpu;
  EngineHarness harness(SmallOptions(), &gpu);
  RunManyRequests(harness);
}

TEST(EngineTest, SynchronousSchedulingOnAnAsynchronousDeviceGivesTheSameTokens) {
  FakeGpu gpu;
  EngineOptions options = SmallOptions();
  options.async_scheduling = false;
  EngineHarness harness(options, &gpu);
  RunManyRequests(harness);
}

TEST(EngineTest, TheNextStepIsLaunchedWhileOneRunsAndNeverAThird) {
  FakeGpu gpu;
  gpu.SetGate(false);
  EngineHarness harness(SmallOptions(), &gpu);
  ASSERT_TRUE(harness.engine().Start().ok());
  ASSERT_TRUE(harness.Submit(1, 10).ok());
  EXPECT_TRUE(WaitFor([&] { return gpu.num_launches() == 2; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_EQ(gpu.num_launches(), 2);
  EXPECT_EQ(harness.engine().Stats().num_steps, 0u);
  gpu.SetGate(true);
  ASSERT_TRUE(harness.PollUntilFinished(1));
  ExpectNullText(harness, 1, 3, 10);
}

TEST(EngineTest, ANewRequestFillsAFreePlaceInThePipeline) {
  FakeGpu gpu;
  gpu.SetGate(false);
  EngineHarness harness(SmallOptions(), &gpu);
  ASSERT_TRUE(harness.engine().Start().ok());
  ASSERT_TRUE(harness.Submit(1, 1).ok());  // one step is all it needs
  ASSERT_TRUE(WaitFor([&] { return gpu.num_launches() == 1; }));
  ASSERT_TRUE(harness.Submit(2, 1).ok());
  EXPECT_TRUE(WaitFor([&] { return gpu.num_launches() == 2; }));
  gpu.SetGate(true);
  EXPECT_TRUE(harness.PollUntilFinished(2));
}

TEST(EngineTest, ASlowReaderFindsOneRowPerRequest) {
  EngineHarness harness;
  ASSERT_TRUE(harness.engine().Start().ok());
  for (uint64_t id = 0; id < 5; ++id) ASSERT_TRUE(harness.Submit(id, 50).ok());
  ASSERT_TRUE(WaitFor([&] { return harness.engine().Stats().num_finished == 5; }));
  (void)harness.engine().DebugString();  // answered between steps: what is counted is handed out
  ASSERT_TRUE(harness.PollUntilFinished(5));
  EXPECT_EQ(harness.num_rows(), 5u);
  for (uint64_t id = 0; id < 5; ++id) ExpectNullText(harness, id, 3, 50);
}

TEST(EngineTest, WhoeverHasAnOutputFindsItCounted) {
  EngineHarness harness;
  ASSERT_TRUE(harness.engine().Start().ok());
  for (uint64_t id = 0; id < 3000; ++id) {
    ASSERT_TRUE(harness.Submit(id, 1).ok());
    while (harness.num_finished() <= id) ASSERT_TRUE(harness.PollOnce(30));
    const EngineStats stats = harness.engine().Stats();
    ASSERT_EQ(stats.num_finished, id + 1);
    ASSERT_EQ(stats.num_generated_tokens, id + 1);
  }
}

TEST(EngineTest, AnIdleEngineUsesNoCore) {
  EngineHarness harness;
  ASSERT_TRUE(harness.engine().Start().ok());
  ASSERT_TRUE(harness.Submit(1, 5).ok());
  ASSERT_TRUE(harness.PollUntilFinished(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const double before = ProcessCpuSeconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(400));
  EXPECT_LT(ProcessCpuSeconds() - before, 0.04);
}

// Law: whatever many threads submit and abort, every accepted request gets
// exactly one last row and all blocks come back.
void AbortStorm(EngineHarness& harness) {
  ASSERT_TRUE(harness.engine().Start().ok());
  constexpr int kThreads = 4;
  constexpr uint64_t kPerThread = 150;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&harness, t] {
      std::mt19937 rng(static_cast<unsigned>(t));
      for (uint64_t i = 0; i < kPerThread; ++i) {
        const uint64_t id = static_cast<uint64_t>(t) * kPerThread + i;
        ASSERT_TRUE(harness.Submit(id, 1 + static_cast<int32_t>(rng() % 60), 1 + rng() % 90).ok());
        if (rng() % 2 == 0) harness.engine().Abort(RequestId(id));
        if (rng() % 4 == 0) harness.engine().Abort(RequestId(rng() % (kThreads * kPerThread)));
        if (rng() % 8 == 0) (void)harness.engine().DebugString();
        (void)harness.engine().Stats();
      }
    });
  }
  EXPECT_TRUE(harness.PollUntilFinished(kThreads * kPerThread));
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(harness.num_finished(), kThreads * kPerThread);
  EXPECT_TRUE(WaitFor([&] { return harness.engine().Stats().num_free_blocks == 512; }));
  EXPECT_FALSE(harness.PollOnce(0.01));
}

TEST(EngineTest, AbortStormsLeaveNothingBehind) {
  EngineHarness harness;
  AbortStorm(harness);
}

TEST(EngineTest, PipelinedAbortStormsLeaveNothingBehind) {
  FakeGpu gpu;
  EngineHarness harness(SmallOptions(), &gpu);
  AbortStorm(harness);
}

TEST(EngineTest, StopWhileBusyAbortsEveryRequestAndJoins) {
  FakeGpu gpu;
  EngineHarness harness(SmallOptions(), &gpu);
  ASSERT_TRUE(harness.engine().Start().ok());
  for (uint64_t id = 0; id < 40; ++id) ASSERT_TRUE(harness.Submit(id, 200).ok());
  harness.PollOnce(1);
  EXPECT_TRUE(harness.engine().Stop());
  while (harness.PollOnce(1)) {
  }
  EXPECT_EQ(harness.num_finished(), 40u);
  EXPECT_EQ(harness.Submit(99, 1).code(), StatusCode::kUnavailable);
  EXPECT_TRUE(harness.engine().Stop());
  EXPECT_FALSE(harness.PollOnce(10));
}

TEST(EngineTest, StopFromManyThreadsWhileOthersSubmit) {
  EngineHarness harness;
  ASSERT_TRUE(harness.engine().Start().ok());
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&harness, t] {
      for (uint64_t i = 0; i < 100; ++i) (void)harness.Submit(t * 100 + i, 5);
      harness.engine().Stop();
    });
  }
  for (std::thread& thread : threads) thread.join();
  while (harness.PollOnce(0)) {
  }
  EXPECT_EQ(harness.Submit(9999, 1).code(), StatusCode::kUnavailable);
}

TEST(EngineTest, AnIdInUseIsRefusedUntilItsLastRow) {
  FakeGpu gpu;
  gpu.SetGate(false);
  EngineHarness harness(SmallOptions(), &gpu);
  ASSERT_TRUE(harness.engine().Start().ok());
  ASSERT_TRUE(harness.Submit(1, 5).ok());
  EXPECT_EQ(harness.Submit(1, 5).code(), StatusCode::kInvalidArgument);
  gpu.SetGate(true);
  ASSERT_TRUE(harness.PollUntilFinished(1));
}

TEST(EngineTest, TheQueueBoundIsToldToTheCaller) {
  FakeGpu gpu;
  gpu.SetGate(false);
  EngineOptions options = SmallOptions();
  options.max_waiting_requests = 3;
  EngineHarness harness(options, &gpu);
  ASSERT_TRUE(harness.engine().Start().ok());
  size_t accepted = 0;
  Status status;
  for (uint64_t id = 0; id < 40 && status.ok(); ++id) {
    status = harness.Submit(id, 5);
    if (status.ok()) ++accepted;
  }
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("max_waiting_requests"), std::string::npos);
  EXPECT_LE(accepted, 16u + 3u);
  EXPECT_GE(accepted, 3u);
  gpu.SetGate(true);
  EXPECT_TRUE(harness.PollUntilFinished(accepted));
  EXPECT_TRUE(WaitFor([&] { return harness.Submit(100, 1).ok(); }));
}

TEST(EngineTest, BadRequestsNameTheField) {
  EngineHarness harness;
  ASSERT_TRUE(harness.engine().Start().ok());
  Request request = EngineHarness::MakeRequest(1, 5);
  request.sampling.temperature = std::numeric_limits<float>::quiet_NaN();
  Status status = harness.engine().Submit(request);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("temperature"), std::string::npos);
  status = harness.Submit(1, 5, 256);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("max_model_len"), std::string::npos);
}

TEST(EngineTest, StartNeedsSomethingThatRunsEveryPlan) {
  const EngineOptions options = SmallOptions();
  std::unique_ptr<Engine> engine;
  ASSERT_TRUE(Engine::Create(options, NewCpuDevice(), {1, 1}, &engine).ok());
  const Status status = engine->Start();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("no executable"), std::string::npos);
}

TEST(EngineTest, CreateNamesTheBadOption) {
  EngineOptions options = SmallOptions();
  options.limits.block_size = 0;
  std::unique_ptr<Engine> engine;
  const Status status = Engine::Create(options, NewCpuDevice(), {1, 1}, &engine);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("block_size"), std::string::npos);
}

}  // namespace
}  // namespace dlcore

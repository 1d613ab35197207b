// What the engine does when the device, the model or a mask does not answer.
#include <atomic>
#include <chrono>
#include <mutex>
#include <string>

#include "base/log.h"
#include "engine/polled_constraint.h"
#include "gtest/gtest.h"
#include "tests/cpp/engine/engine_harness.h"

namespace dlcore {
namespace {

using testing::EngineHarness;
using testing::FakeGpu;
using testing::SmallOptions;
using testing::WaitFor;

std::mutex g_log_mutex;
std::string g_log;

void Capture(LogLevel /*level*/, std::string_view message) {
  const std::lock_guard lock(g_log_mutex);
  g_log.append(message).append("\n");
}

class FailureTest : public ::testing::Test {
 protected:
  void SetUp() override {
    g_log.clear();
    SetLogSink(&Capture);
  }
  void TearDown() override { SetLogSink(nullptr); }

  static std::string log() {
    const std::lock_guard lock(g_log_mutex);
    return g_log;
  }

  static void ExpectDead(EngineHarness& harness, uint64_t id, const std::string& why) {
    EXPECT_EQ(harness.last(id).finish_reason, FinishReason::kError);
    EXPECT_NE(harness.last(id).error.find(why), std::string::npos) << harness.last(id).error;
    EXPECT_FALSE(harness.engine().Stats().healthy);
    const Status status = harness.Submit(1000 + id, 1);
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_NE(status.message().find(why), std::string::npos) << status.message();
  }
};

double SecondsToStop(EngineHarness& harness) {
  const auto start = std::chrono::steady_clock::now();
  harness.engine().Stop();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

TEST_F(FailureTest, AStalledDeviceFailsEveryRequestWithADump) {
  FakeGpu gpu;
  gpu.SetGate(false);
  EngineOptions options = SmallOptions();
  options.watchdog_timeout_s = 0.3;
  EngineHarness harness(options, &gpu);
  ASSERT_TRUE(harness.engine().Start().ok());
  ASSERT_TRUE(harness.Submit(1, 10).ok());
  ASSERT_TRUE(harness.Submit(2, 10).ok());
  ASSERT_TRUE(harness.PollUntilFinished(2));
  ExpectDead(harness, 1, "watchdog_timeout_s");
  ExpectDead(harness, 2, "no progress");
  EXPECT_NE(log().find("waiting for the device"), std::string::npos) << log();
  EXPECT_NE(log().find("uncommitted plans"), std::string::npos) << "the scheduler's dump";
  EXPECT_LT(SecondsToStop(harness), 20);
}

TEST_F(FailureTest, TheWatchdogLeavesAnIdleEngineAlone) {
  EngineOptions options = SmallOptions();
  options.watchdog_timeout_s = 0.05;
  EngineHarness harness(options);
  ASSERT_TRUE(harness.engine().Start().ok());
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  ASSERT_TRUE(harness.Submit(1, 5).ok());
  ASSERT_TRUE(harness.PollUntilFinished(1));
  EXPECT_EQ(harness.last(1).finish_reason, FinishReason::kLength);
  EXPECT_TRUE(harness.engine().Stats().healthy);
}

// Holds the engine thread inside Launch, like a model whose Python hangs.
class Hanging final : public Executable {
 public:
  explicit Hanging(std::shared_ptr<std::atomic<bool>> hang) : hang_(std::move(hang)) {}
  Status Launch(const StepKey& /*key*/, Stream& /*stream*/) override {
    while (hang_->load()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return Status::Internal("released");
  }

 private:
  std::shared_ptr<std::atomic<bool>> hang_;
};

TEST_F(FailureTest, AModelThatNeverReturnsIsReportedAndStopIsBounded) {
  // Never freed: the thread that is left behind may still write there.
  static auto* const input =
      new std::vector<std::byte>(StepLayout::MaxInputBytes(SmallOptions().limits));
  static auto* const output =
      new std::vector<std::byte>(StepLayout::MaxOutputBytes(SmallOptions().limits));
  const auto hang = std::make_shared<std::atomic<bool>>(true);
  EngineOptions options = SmallOptions();
  options.watchdog_timeout_s = 0.2;
  std::unique_ptr<Engine> engine;
  ASSERT_TRUE(Engine::Create(options, NewCpuDevice(),
                             {reinterpret_cast<uint64_t>(input->data()),
                              reinterpret_cast<uint64_t>(output->data())},
                             &engine)
                  .ok());
  ASSERT_TRUE(engine->SetExactExecutable(std::make_unique<Hanging>(hang)).ok());
  ASSERT_TRUE(engine->Start().ok());
  ASSERT_TRUE(engine->Submit(EngineHarness::MakeRequest(1, 5)).ok());
  OutputBatch batch;
  ASSERT_TRUE(engine->Poll(20, &batch));
  ASSERT_EQ(batch.outputs.size(), 1u);
  EXPECT_EQ(batch.outputs[0].finish_reason, FinishReason::kError);
  EXPECT_NE(log().find("launching"), std::string::npos) << log();
  EXPECT_NE(log().find("does not answer"), std::string::npos) << log();
  EXPECT_FALSE(engine->Stop());  // the step may still write
  EXPECT_FALSE(engine->Stop());
  engine.reset();
  hang->store(false);  // the thread left behind still has what it needs
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
}

TEST_F(FailureTest, ARefusedLaunchFailsEveryRequestAtOnce) {
  FakeGpu gpu;
  gpu.FailLaunches();
  EngineHarness harness(SmallOptions(), &gpu);
  ASSERT_TRUE(harness.engine().Start().ok());
  ASSERT_TRUE(harness.Submit(1, 10).ok());
  ASSERT_TRUE(harness.PollUntilFinished(1));
  ExpectDead(harness, 1, "the launch was refused");
  EXPECT_LT(SecondsToStop(harness), 20);
}

TEST_F(FailureTest, AFaultOnTheDeviceFailsEveryRequestAtOnce) {
  FakeGpu gpu;
  gpu.SetGate(false);
  EngineHarness harness(SmallOptions(), &gpu);
  ASSERT_TRUE(harness.engine().Start().ok());
  ASSERT_TRUE(harness.Submit(1, 10).ok());
  ASSERT_TRUE(WaitFor([&] { return gpu.num_launches() > 0; }));
  gpu.FailEvents();
  ASSERT_TRUE(harness.PollUntilFinished(1));
  ExpectDead(harness, 1, "an illegal memory access");
}

struct Grammar {
  std::shared_ptr<ConstraintQueue> queue = std::make_shared<ConstraintQueue>();
  std::shared_ptr<PolledConstraint> constraint = std::make_shared<PolledConstraint>(queue, 7, 1000);
  std::vector<uint32_t> mask = std::vector<uint32_t>(32, 0);

  void AttachTo(Request* request, Engine& engine) {
    request->constraint = constraint;
    constraint->SetWake([&engine] { engine.Wake(); });
  }
  bool Allow(int64_t num_tokens_seen, TokenId token) {
    std::fill(mask.begin(), mask.end(), 0u);
    mask[static_cast<size_t>(token) / 32] = 1u << (token % 32);
    return constraint->SetMask(num_tokens_seen, mask, false);
  }
};

TEST_F(FailureTest, AMaskThatNeverComesFailsItsRequestAndNotTheEngine) {
  EngineOptions options = SmallOptions();
  options.watchdog_timeout_s = 0.3;
  EngineHarness harness(options);
  ASSERT_TRUE(harness.engine().Start().ok());
  Grammar grammar;
  Request request = EngineHarness::MakeRequest(1, 5);
  grammar.AttachTo(&request, harness.engine());
  ASSERT_TRUE(harness.engine().Submit(std::move(request)).ok());
  ASSERT_TRUE(harness.PollUntilFinished(1));
  EXPECT_EQ(harness.last(1).finish_reason, FinishReason::kError);
  EXPECT_NE(harness.last(1).error.find("mask"), std::string::npos) << harness.last(1).error;
  EXPECT_TRUE(harness.engine().Stats().healthy);
  ASSERT_TRUE(harness.Submit(2, 5).ok());
  ASSERT_TRUE(harness.PollUntilFinished(2));
  EXPECT_EQ(harness.last(2).finish_reason, FinishReason::kLength);
  harness.engine().Stop();
}

TEST_F(FailureTest, FreeSequencesNeverWaitForAMask) {
  FakeGpu gpu;
  EngineHarness harness(SmallOptions(), &gpu);
  ASSERT_TRUE(harness.engine().Start().ok());
  Grammar grammar;
  Request request = EngineHarness::MakeRequest(1, 3);
  grammar.AttachTo(&request, harness.engine());
  ASSERT_TRUE(harness.engine().Submit(std::move(request)).ok());
  ASSERT_TRUE(harness.Submit(2, 40).ok());
  ASSERT_TRUE(harness.PollUntilFinished(1));
  EXPECT_EQ(harness.last(2).finish_reason, FinishReason::kLength);
  EXPECT_TRUE(harness.tokens(1).empty());
  // Each mask lets exactly one token follow; a stale one is refused.
  for (int64_t seen = 0; seen < 3; ++seen) {
    ASSERT_TRUE(WaitFor([&] { return grammar.constraint->num_tokens_seen() == seen; }));
    EXPECT_FALSE(grammar.Allow(seen + 1, 5));
    EXPECT_TRUE(grammar.Allow(seen, static_cast<TokenId>(100 + seen)));
  }
  ASSERT_TRUE(harness.PollUntilFinished(2));
  EXPECT_EQ(harness.tokens(1), (std::vector<TokenId>{100, 101, 102}));
  harness.engine().Stop();
}

TEST_F(FailureTest, WaitingForAMaskUsesNoCore) {
  EngineHarness harness;
  ASSERT_TRUE(harness.engine().Start().ok());
  Grammar grammar;
  Request request = EngineHarness::MakeRequest(1, 1);
  grammar.AttachTo(&request, harness.engine());
  ASSERT_TRUE(harness.engine().Submit(std::move(request)).ok());
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  timespec before{};
  timespec after{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  std::this_thread::sleep_for(std::chrono::milliseconds(400));
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  const double used = static_cast<double>(after.tv_sec - before.tv_sec) +
                      static_cast<double>(after.tv_nsec - before.tv_nsec) * 1e-9;
  EXPECT_LT(used, 0.04);
  EXPECT_TRUE(grammar.Allow(0, 9));
  ASSERT_TRUE(harness.PollUntilFinished(1));
  harness.engine().Stop();
}

}  // namespace
}  // namespace dlcore

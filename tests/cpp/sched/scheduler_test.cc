// The scheduler's laws as small scenes.
#include "sched/scheduler.h"

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/cpp/sched/simulation.h"

namespace dlcore::testing {
namespace {

EngineOptions SmallOptions() {
  EngineOptions o;
  o.limits.max_num_batched_tokens = 16;
  o.limits.max_num_seqs = 4;
  o.limits.max_model_len = 64;
  o.limits.block_size = 4;
  o.limits.vocab_size = 1000;
  o.limits.max_logprobs = 2;
  o.limits.max_bias_entries = 2;
  o.num_kv_blocks = 64;
  o.hash_key[0] = 1;
  return o;
}

Request MakeRequest(uint64_t id, int32_t prompt_len, int32_t max_tokens) {
  Request r;
  r.id = RequestId(id);
  for (int32_t i = 0; i < prompt_len; ++i) {
    r.prompt.push_back(static_cast<TokenId>((id * 100 + static_cast<uint64_t>(i)) % 1000));
  }
  r.sampling.temperature = 0;
  r.sampling.max_tokens = max_tokens;
  return r;
}

// A device that samples what the test says.
class Script {
 public:
  explicit Script(const EngineOptions& options) : scheduler(options), vocab_(options.limits) {}

  void Submit(Request request) {
    const Status status = scheduler.Submit(std::move(request));
    ASSERT_TRUE(status.ok()) << status.message();
  }
  // Commits the oldest plan; every row samples `token`.
  void Commit(TokenId token) {
    const std::vector<int32_t> tokens(static_cast<size_t>(vocab_.max_num_seqs), token);
    StepResult result;
    result.sampled_tokens = tokens;
    scheduler.Commit(result);
  }
  std::vector<SequenceOutput> Outputs() {
    OutputBatch batch;
    scheduler.TakeOutputs(&batch);
    return std::move(batch.outputs);
  }
  static std::vector<uint64_t> Ids(const StepPlan& plan) {
    std::vector<uint64_t> ids;
    for (const PlannedSequence& p : plan.sequences) ids.push_back(p.sequence->id().value);
    return ids;
  }

  Scheduler scheduler;

 private:
  StepLimits vocab_;
};

using Ids = std::vector<uint64_t>;

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

TEST(Scheduler, TheQueueHasABound) {
  EngineOptions options = SmallOptions();
  options.max_waiting_requests = 1;
  Script s(options);
  s.Submit(MakeRequest(1, 3, 5));
  EXPECT_EQ(s.scheduler.Submit(MakeRequest(2, 3, 5)).code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(s.scheduler.Submit(MakeRequest(1, 3, 5)).code(), StatusCode::kInvalidArgument);
}

TEST(Scheduler, DebugStringHasALinePerSequence) {
  Script s(SmallOptions());
  s.Submit(MakeRequest(1, 3, 5));
  s.Submit(MakeRequest(2, 60, 2));
  s.scheduler.NextPlan();
  const std::string text = s.scheduler.DebugString();
  EXPECT_NE(text.find("request 1 running"), std::string::npos) << text;
  EXPECT_NE(text.find("request 2 running"), std::string::npos) << text;
}

struct BadRequest {
  const char* field;
  void (*spoil)(Request*);
};

class SubmitRejects : public ::testing::TestWithParam<BadRequest> {};

TEST_P(SubmitRejects, NamingTheField) {
  EngineOptions options = SmallOptions();
  options.eos_token_ids = {9};
  Scheduler scheduler(options);
  Request request = MakeRequest(1, 3, 5);
  GetParam().spoil(&request);
  const Status status = scheduler.Submit(request);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find(GetParam().field), std::string::npos) << status.message();
  EXPECT_FALSE(scheduler.HasWork());
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

INSTANTIATE_TEST_SUITE_P(
    Scheduler, SubmitRejects,
    ::testing::Values(
        BadRequest{"prompt", [](Request* r) { r->prompt.clear(); }},
        BadRequest{"prompt", [](Request* r) { r->prompt.resize(64); }},
        BadRequest{"prompt", [](Request* r) { r->prompt[1] = 1000; }},
        BadRequest{"prompt", [](Request* r) { r->prompt[1] = -1; }},
        BadRequest{"temperature", [](Request* r) { r->sampling.temperature = -1; }},
        BadRequest{"temperature", [](Request* r) { r->sampling.temperature = kNan; }},
        BadRequest{"temperature", [](Request* r) { r->sampling.temperature = kInf; }},
        BadRequest{"top_p", [](Request* r) { r->sampling.top_p = 0; }},
        BadRequest{"top_p", [](Request* r) { r->sampling.top_p = kNan; }},
        BadRequest{"min_p", [](Request* r) { r->sampling.min_p = 1.5f; }},
        BadRequest{"top_k", [](Request* r) { r->sampling.top_k = -2; }},
        BadRequest{"presence_penalty", [](Request* r) { r->sampling.presence_penalty = 3; }},
        BadRequest{"frequency_penalty", [](Request* r) { r->sampling.frequency_penalty = kNan; }},
        BadRequest{"repetition_penalty", [](Request* r) { r->sampling.repetition_penalty = 0; }},
        BadRequest{"max_tokens", [](Request* r) { r->sampling.max_tokens = 0; }},
        BadRequest{"min_tokens", [](Request* r) { r->sampling.min_tokens = 6; }},
        BadRequest{"logprobs", [](Request* r) { r->sampling.logprobs = 3; }},
        BadRequest{"prompt_logprobs", [](Request* r) { r->sampling.prompt_logprobs = -2; }},
        BadRequest{"logit_bias", [](Request* r) { r->sampling.logit_bias = {{1, kNan}}; }},
        BadRequest{"logit_bias", [](Request* r) { r->sampling.logit_bias = {{1000, 1.0f}}; }},
        BadRequest{"logit_bias", [](Request* r) { r->sampling.logit_bias.resize(3); }},
        BadRequest{"stop_token_ids", [](Request* r) { r->sampling.stop_token_ids = {-4}; }},
        BadRequest{"allowed_token_ids",
                   [](Request* r) { r->sampling.allowed_token_ids = {1, 5000}; }},
        BadRequest{"allowed_token_ids",
                   [](Request* r) {
                     r->sampling.allowed_token_ids = {9};
                     r->sampling.min_tokens = 1;
                   }},
        BadRequest{"bad_words", [](Request* r) { r->sampling.bad_words = {{}}; }},
        BadRequest{"bad_words", [](Request* r) { r->sampling.bad_words = {{1000}}; }},
        BadRequest{"resume_token_ids", [](Request* r) { r->resume_token_ids = {1, 1000}; }},
        BadRequest{"max_tokens", [](Request* r) { r->resume_token_ids = {1, 2, 3, 4, 5}; }},
        BadRequest{"max_model_len", [](Request* r) {
                     r->sampling.max_tokens = 100;
                     r->resume_token_ids.resize(61);
                   }}));

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

TEST(Scheduler, APromptThatCannotFitThePoolIsRejectedAtSubmit) {
  EngineOptions options = SmallOptions();
  options.num_kv_blocks = 2;
  Scheduler scheduler(options);
  const Status status = scheduler.Submit(MakeRequest(1, 9, 1));
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("num_kv_blocks"), std::string::npos);
  EXPECT_TRUE(scheduler.Submit(MakeRequest(1, 8, 1)).ok());
}

TEST(EngineOptions, ValidateNamesTheField) {
  const auto message = [](void (*spoil)(EngineOptions*)) {
    EngineOptions options = SmallOptions();
    spoil(&options);
    return options.Validate().message();
  };
  EXPECT_TRUE(SmallOptions().Validate().ok());
  const auto has = [](const std::string& text, const char* field) {
    return text.find(field) != std::string::npos;
  };
  EXPECT_TRUE(has(message([](EngineOptions* o) { o->limits.block_size = 0; }), "block_size"));
  EXPECT_TRUE(has(message([](EngineOptions* o) { o->limits.max_num_seqs = -1; }), "max_num_seqs"));
  EXPECT_TRUE(has(message([](EngineOptions* o) { o->limits.max_model_len = 1; }), "max_model_len"));
  EXPECT_TRUE(has(message([](EngineOptions* o) { o->num_kv_blocks = 0; }), "num_kv_blocks"));
  EXPECT_TRUE(has(message([](EngineOptions* o) { o->eos_token_ids = {1000}; }), "eos_token_ids"));
  EXPECT_TRUE(
      has(message([](EngineOptions* o) { o->max_waiting_requests = -1; }), "max_waiting_requests"));
  EXPECT_TRUE(has(message([](EngineOptions* o) {
                    o->cache_groups = {{CacheKind::kState, 1, 1, 0}};
                  }),
                  "cache_groups[0].kind"));
}

}  // namespace
}  // namespace dlcore::testing

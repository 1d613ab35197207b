// What is refused at the door, with the field named.
#include <limits>
#include <string>

#include <gtest/gtest.h>

#include "sched/scheduler.h"
#include "tests/cpp/sched/script.h"

namespace dlcore::testing {
namespace {

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

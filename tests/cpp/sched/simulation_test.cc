// Whatever the scheduler does - chunk, hit the prefix cache, preempt, reorder,
// pipeline, take over from another engine - every request gets the answer it would get alone.
#include "tests/cpp/sched/simulation.h"

#include <random>
#include <sstream>
#include <string>

#include <gtest/gtest.h>

#include "tests/cpp/sched/reference.h"

namespace dlcore::testing {
namespace {

constexpr int32_t kVocab = 83;
// The size of the random test: shards run as tests of their own.
constexpr int kShards = 4;
constexpr int kScenesPerShard = 75;
constexpr int kStepsPerScene = 500;

// Ready only now and then, like a grammar compiled by another thread. Allows
// tokens that differ from the last one by an odd number.
bool OddRule(const std::vector<TokenId>& generated, TokenId token) {
  return generated.empty() || (token - generated.back()) % 2 != 0;
}

class SlowOddConstraint final : public TokenConstraint {
 public:
  explicit SlowOddConstraint(uint32_t seed) : random_(seed) {}
  void Advance(std::span<const TokenId> tokens) override {
    generated_.insert(generated_.end(), tokens.begin(), tokens.end());
    delay_ = static_cast<int>(random_() % 3);
  }
  bool Ready() const override { return delay_-- <= 0; }
  std::span<const uint32_t> Mask() const override {
    mask_.assign((kVocab + 31) / 32, 0);
    for (TokenId t = 0; t < kVocab; ++t) {
      if (OddRule(generated_, t)) mask_[static_cast<size_t>(t) / 32] |= 1u << (t % 32);
    }
    return mask_;
  }
  bool Finished() const override { return false; }

 private:
  std::mt19937 random_;
  std::vector<TokenId> generated_;
  mutable int delay_ = 2;
  mutable std::vector<uint32_t> mask_;
};

class Scene {
 public:
  explicit Scene(uint32_t seed) : random_(seed), options_(RandomOptions()), sim_(options_) {}

  void Run() {
    ASSERT_TRUE(options_.Validate().ok()) << options_.Validate().message();
    for (int i = 0; i < kStepsPerScene; ++i) {
      Step();
      if (::testing::Test::HasFatalFailure()) return;
    }
    sim_.Drain(2, false);
    CheckAnswers();
  }

  SchedulerStats Stats() { return sim_.scheduler().Stats(); }

 private:
  int32_t Pick(int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(random_);
  }
  bool Chance(int32_t percent) { return Pick(1, 100) <= percent; }

  EngineOptions RandomOptions() {
    EngineOptions o;
    o.limits.block_size = 1 << Pick(0, 4);
    o.limits.max_model_len = Pick(40, 160);
    o.limits.max_num_seqs = Pick(1, 12);
    o.limits.max_num_batched_tokens = Pick(1, 96);
    o.limits.vocab_size = kVocab;
    o.limits.max_logprobs = 3;
    o.limits.max_bias_entries = 4;
    o.enable_prefix_caching = Chance(80);
    o.enable_chunked_prefill = Chance(75);
    if (!o.enable_chunked_prefill) o.limits.max_num_batched_tokens = o.limits.max_model_len + 5;
    if (Chance(30)) o.long_prefill_token_threshold = Pick(1, 20);
    if (Chance(30)) o.max_prefill_tokens_beside_decodes = Pick(1, 20);
    if (Chance(30)) o.mixed_step_tokens = Pick(1, 40);
    o.hold_back_last_answers = Chance(50);
    // From "barely holds one sequence" to roomy.
    o.num_kv_blocks = o.limits.max_blocks_per_seq() * Pick(1, 6) + Pick(0, 3);
    o.eos_token_ids = {1};
    return o;
  }

  Request RandomRequest() {
    Request r;
    r.id = RequestId(next_id_++);
    const int32_t most = options_.limits.max_model_len - 1;
    const int32_t length = Pick(1, Chance(30) ? most : std::min(most, 40));
    const uint64_t base = static_cast<uint64_t>(Pick(1, 3));
    const int32_t shared = Pick(0, length);
    for (int32_t i = 0; i < length; ++i) {
      const uint64_t source = i < shared ? base : random_();
      r.prompt.push_back(static_cast<TokenId>(Mix(source, static_cast<uint64_t>(i)) % kVocab));
    }
    r.priority = Pick(0, 2);
    if (Chance(30)) r.cache_salt = "tenant";
    RandomSampling(&r.sampling);
    if (Chance(10)) r.constraint = std::make_shared<SlowOddConstraint>(random_());
    if (Chance(25)) CutSomewhere(&r);
    return r;
  }

  // Another engine died at any point of the answer; this one goes on from there.
  void CutSomewhere(Request* r) {
    const Answer answer = Reference(options_).Run(*r, r->constraint ? OddRule : nullptr);
    const auto size = static_cast<int32_t>(answer.tokens.size());
    if (size < 2 || answer.reason == FinishReason::kError) return;
    const auto begin = answer.tokens.begin();
    r->resume_token_ids.assign(begin, begin + Pick(1, size - 1));
  }

  void RandomSampling(SamplingParams* p) {
    p->temperature = Chance(50) ? 0.0f : 0.7f;
    p->seed = random_();
    p->max_tokens = Chance(20) ? 1 : Pick(1, 60);
    if (Chance(20)) p->min_tokens = Pick(0, p->max_tokens);
    p->ignore_eos = Chance(30);
    if (Chance(20)) p->stop_token_ids = {Pick(0, kVocab - 1), Pick(0, kVocab - 1)};
    if (Chance(15)) p->repetition_penalty = 1.5f;
    if (Chance(15)) p->presence_penalty = 0.5f;
    if (Chance(10)) p->logit_bias = {{Pick(0, kVocab - 1), 2.0f}, {3, -1.0f}};
    if (Chance(10)) p->allowed_token_ids = {2, 3, 5, 7, 40, 41, 42, 80};
    if (Chance(10)) p->bad_words = {{4}, {Pick(0, kVocab - 1), 6}};
    if (Chance(10)) p->bad_words = {{7}};
    if (Chance(15)) p->logprobs = Pick(0, 3);
    if (Chance(15)) p->prompt_logprobs = Pick(0, 3);
  }

  void Step() {
    while (Chance(25) && requests_.size() < 100000) SubmitOne();
    if (Chance(3) && !requests_.empty()) AbortOne();
    if (sim_.in_flight() < 2 && Chance(80)) sim_.Launch(Chance(40));
    if (sim_.in_flight() > 0 && Chance(sim_.in_flight() == 2 ? 90 : 40)) sim_.Commit();
    if (Chance(1)) sim_.Drain(static_cast<size_t>(Pick(1, 2)), Chance(50));
  }

  void SubmitOne() {
    Request request = RandomRequest();
    const Request copy = request;
    const Status status = sim_.scheduler().Submit(std::move(request));
    ASSERT_TRUE(status.ok()) << status.message();
    requests_.emplace(copy.id.value, copy);
  }

  void AbortOne() {
    const auto id = static_cast<uint64_t>(Pick(0, static_cast<int32_t>(next_id_) - 1));
    sim_.Collect();
    aborted_.insert(id);
    sim_.scheduler().Abort(RequestId(id));
    sim_.Collect();
  }

  static std::string Describe(const Request& r) {
    const SamplingParams& p = r.sampling;
    std::ostringstream out;
    out << "request " << r.id.value << " prompt " << r.prompt.size() << " temperature "
        << p.temperature << " repetition " << p.repetition_penalty << " presence "
        << p.presence_penalty << " min_tokens " << p.min_tokens << " bias " << p.logit_bias.size()
        << " allowed " << p.allowed_token_ids.size() << " bad_words " << p.bad_words.size()
        << " logprobs " << p.logprobs << " prompt_logprobs " << p.prompt_logprobs << " constraint "
        << (r.constraint != nullptr) << " resumed " << r.resume_token_ids.size();
    return out.str();
  }

  void CheckAnswers() {
    const Reference reference(options_);
    for (const auto& [id, request] : requests_) {
      ASSERT_TRUE(sim_.received().contains(id)) << "request " << id << " got nothing";
      const Received& got = sim_.received().at(id);
      Answer want = reference.Run(request, request.constraint ? OddRule : nullptr);
      const auto cut = static_cast<std::ptrdiff_t>(request.resume_token_ids.size());
      want.tokens.erase(want.tokens.begin(), want.tokens.begin() + cut);
      if (cut > 0 && !want.logprobs.empty()) {
        want.logprobs.erase(want.logprobs.begin(), want.logprobs.begin() + cut);
      }
      if (got.reason == FinishReason::kAbort) {
        ASSERT_TRUE(aborted_.contains(id));
        ASSERT_LE(got.tokens.size(), want.tokens.size());
        want.tokens.resize(got.tokens.size());
        ASSERT_EQ(got.tokens, want.tokens);
        continue;
      }
      ASSERT_EQ(got.tokens, want.tokens) << Describe(request);
      ASSERT_EQ(got.reason, want.reason) << "request " << id << " " << got.error;
      ASSERT_EQ(got.logprobs, want.logprobs) << "request " << id;
      ASSERT_EQ(got.prompt_logprobs, want.prompt_logprobs) << "request " << id;
      ASSERT_EQ(got.stop_token,
                want.reason == FinishReason::kStop ? want.tokens.back() : TokenId{-1});
      const auto prompt_len = static_cast<int32_t>(request.prompt.size());
      ASSERT_LE(got.num_cached_tokens, cut > 0 ? prompt_len : prompt_len - 1);
    }
  }

  std::mt19937 random_;
  EngineOptions options_;
  Simulation sim_;
  uint64_t next_id_ = 0;
  std::map<uint64_t, Request> requests_;
  std::set<uint64_t> aborted_;
};

class RandomSimulation : public ::testing::TestWithParam<int> {};

TEST_P(RandomSimulation, EveryRequestGetsThePlainAnswer) {
  SchedulerStats total;
  for (int i = 0; i < kScenesPerShard; ++i) {
    const int seed = GetParam() * kScenesPerShard + i;
    SCOPED_TRACE("seed " + std::to_string(seed));
    Scene scene(static_cast<uint32_t>(seed));
    scene.Run();
    if (HasFatalFailure()) return;
    const SchedulerStats stats = scene.Stats();
    total.num_preemptions += stats.num_preemptions;
    total.num_prefix_hits += stats.num_prefix_hits;
    total.num_generated_tokens += stats.num_generated_tokens;
    total.num_finished += stats.num_finished;
  }
  // A simulation that never gets into trouble proves nothing.
  EXPECT_GT(total.num_preemptions, 500u);
  EXPECT_GT(total.num_prefix_hits, 5000u);
  EXPECT_GT(total.num_generated_tokens, 50000u);
  EXPECT_GT(total.num_finished, 3000u);
}

INSTANTIATE_TEST_SUITE_P(Shards, RandomSimulation, ::testing::Range(0, kShards));

}  // namespace
}  // namespace dlcore::testing

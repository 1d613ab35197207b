// The bytes of the arena, scene by scene. That they run the right step whatever
// the scheduler does is shown by the simulation in tests/cpp/sched.
#include "step/step_builder.h"

#include <bit>
#include <vector>

#include <gtest/gtest.h>

#include "sched/scheduler.h"

namespace dlcore {
namespace {

EngineOptions Options() {
  EngineOptions o;
  o.limits.max_num_batched_tokens = 16;
  o.limits.max_num_seqs = 4;
  o.limits.max_model_len = 32;
  o.limits.block_size = 4;
  o.limits.vocab_size = 100;
  o.limits.max_logprobs = 2;
  o.num_kv_blocks = 32;
  return o;
}

class StepBuilderTest : public ::testing::Test {
 protected:
  StepBuilderTest()
      : scheduler(Options()),
        builder(Options().limits),
        mirror(StepLayout::MaxInputBytes(Options().limits), std::byte{0x5a}) {}

  void Submit(uint64_t id, std::vector<TokenId> prompt, const SamplingParams& sampling) {
    Request request;
    request.id = RequestId(id);
    request.prompt = std::move(prompt);
    request.sampling = sampling;
    ASSERT_TRUE(scheduler.Submit(std::move(request)).ok());
  }
  static SamplingParams Greedy() {
    SamplingParams p;
    p.temperature = 0;
    return p;
  }

  // Plans and fills as the bucket (T, S); 0 = exact.
  void Fill(int32_t num_tokens = 0, int32_t num_seqs = 0) {
    const StepPlan& plan = scheduler.NextPlan();
    key = plan.key();
    if (num_tokens > 0) key.num_tokens = num_tokens;
    if (num_seqs > 0) key.num_seqs = num_seqs;
    used = builder.Fill(plan, key, mirror);
  }
  void Commit(TokenId token) {
    const std::vector<int32_t> tokens(4, token);
    const std::vector<float> floats(8);
    const std::vector<int32_t> ints(8);
    scheduler.Commit({tokens, floats, ints, ints, floats});
  }

  template <class T = int32_t>
  std::vector<T> Read(std::string_view field, size_t count) const {
    const size_t offset = StepLayout(Options().limits, key).InputOffset(field);
    const T* data = reinterpret_cast<const T*>(mirror.data() + offset);
    return {data, data + count};
  }
  int32_t Header(StepHeader entry) const {
    return Read("header", kHeaderSize)[static_cast<size_t>(entry)];
  }
  std::vector<int32_t> Section(StepHeader offset, int32_t count) const {
    const int32_t* ints = reinterpret_cast<const int32_t*>(mirror.data()) + Header(offset);
    return {ints, ints + count};
  }

  Scheduler scheduler;
  StepBuilder builder;
  std::vector<std::byte> mirror;
  StepKey key;
  size_t used = 0;
};

using Ints = std::vector<int32_t>;

TEST_F(StepBuilderTest, APrefillAndItsPadding) {
  Submit(1, {50, 51, 52, 53, 54, 55}, Greedy());
  Fill(8, 2);
  EXPECT_EQ(Header(StepHeader::kNumTokens), 6);
  EXPECT_EQ(Header(StepHeader::kNumSeqs), 1);
  EXPECT_EQ(Header(StepHeader::kNumRows), 1);
  EXPECT_EQ(Header(StepHeader::kMaxSeqLen), 6);
  EXPECT_EQ(Header(StepHeader::kMaxQueryLen), 6);
  EXPECT_EQ(Read("token_ids", 8), (Ints{50, 51, 52, 53, 54, 55, 0, 0}));
  EXPECT_EQ(Read("positions", 6), (Ints{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(Read("slot_mapping", 8), (Ints{0, 1, 2, 3, 4, 5, -1, -1}));
  EXPECT_EQ(Read("token_seq", 8), (Ints{0, 0, 0, 0, 0, 0, -1, -1}));
  EXPECT_EQ(Read("query_start_loc", 3), (Ints{0, 6, 6}));
  EXPECT_EQ(Read("seq_lens", 2), (Ints{6, 0}));
  EXPECT_EQ(Read("seq_slots", 2), (Ints{0, -1}));
  EXPECT_EQ(Read("logits_indices", 1), (Ints{5}));
  EXPECT_EQ(Read("row_start_loc", 3), (Ints{0, 1, 1}));
  EXPECT_EQ(Read("row_slots", 2), (Ints{0, -1}));
  EXPECT_EQ(Read("target_tokens", 2), (Ints{-1, -1}));
}

TEST_F(StepBuilderTest, StepsInFlightHaveDifferentSerialsAndNoneIsZero) {
  Submit(1, {50, 51}, Greedy());
  Fill();
  const int32_t first = Header(StepHeader::kStepSerial);
  Fill();
  const int32_t second = Header(StepHeader::kStepSerial);
  EXPECT_NE(first, 0);
  EXPECT_NE(second, 0);
  EXPECT_NE(first, second);
}

TEST(LayerWord, SpeaksOfOneStep) {
  for (const int32_t serial : {1, 7, INT32_MAX}) {
    EXPECT_EQ(LayerWord::LayersDone(LayerWord::Make(serial, 36), serial), 36);
    EXPECT_EQ(LayerWord::LayersDone(LayerWord::Make(serial, 36), serial == 7 ? 8 : 7), 0);
    EXPECT_EQ(LayerWord::LayersDone(0, serial), 0);
  }
}

TEST_F(StepBuilderTest, ADecodePlannedAheadTakesItsTokenFromTheDevice) {
  Submit(1, {50, 51}, Greedy());
  Fill();
  Fill();
  EXPECT_EQ(Read("token_ids", 1), (Ints{kPendingToken}));
  EXPECT_EQ(Read("positions", 1), (Ints{2}));
  Commit(9);
  Commit(8);
  Fill();
  EXPECT_EQ(Read("token_ids", 1), (Ints{8})) << "known by now";
}

TEST_F(StepBuilderTest, BlockTablesAreSentOnceAndThenOnlyTheirChanges) {
  Submit(1, {50, 51, 52, 53, 54, 55, 56}, Greedy());
  Fill();
  ASSERT_EQ(Header(StepHeader::kNumBlockUpdates), 2);
  EXPECT_EQ(Section(StepHeader::kBlockUpdatesOffset, 4), (Ints{0, 0, 1, 1}));
  Fill();
  EXPECT_EQ(Header(StepHeader::kNumBlockUpdates), 0);
  Commit(9);
  Fill();
  ASSERT_EQ(Header(StepHeader::kNumBlockUpdates), 1);
  EXPECT_EQ(Section(StepHeader::kBlockUpdatesOffset, 2), (Ints{2, 2}));
}

TEST_F(StepBuilderTest, SamplingFieldsArePerRow) {
  SamplingParams p;
  p.temperature = 0.5f;
  p.top_p = 0.9f;
  p.min_p = 0.1f;
  p.top_k = 7;
  p.seed = 0xffffffffffffffffu;
  Submit(1, {50, 51, 52}, p);
  Fill(4, 2);
  EXPECT_EQ(Read<float>("temperature", 2), (std::vector<float>{0.5f, 0.0f}));
  EXPECT_EQ(Read<float>("top_p", 2), (std::vector<float>{0.9f, 1.0f}));
  EXPECT_EQ(Read<float>("min_p", 2), (std::vector<float>{0.1f, 0.0f}));
  EXPECT_EQ(Read("top_k", 2), (Ints{7, 0}));
  EXPECT_EQ(Read<int64_t>("seeds", 2), (std::vector<int64_t>{-1, 0}));
  EXPECT_EQ(Read("sample_positions", 2), (Ints{3, 0}));
}

TEST_F(StepBuilderTest, PenaltyHistoryComesWithTheFirstSampledRowOnly) {
  SamplingParams p = Greedy();
  p.repetition_penalty = 1.2f;
  Submit(1, {50, 51}, p);
  Fill();
  EXPECT_EQ(Read("counts_reset", 1), (Ints{1}));
  ASSERT_EQ(Header(StepHeader::kNumHistory), 2);
  EXPECT_EQ(Section(StepHeader::kHistoryOffset, 4), (Ints{0, 50, 0, 51}));
  Fill();
  EXPECT_EQ(Read("counts_reset", 1), (Ints{0}));
  EXPECT_EQ(Header(StepHeader::kNumHistory), 0);
  EXPECT_EQ(Read<float>("repetition_penalty", 1), (std::vector<float>{1.2f}));
}

TEST_F(StepBuilderTest, BiasAndMasksNameTheirRow) {
  SamplingParams p = Greedy();
  p.logit_bias = {{4, -1.5f}};
  p.allowed_token_ids = {33};
  Submit(1, {50, 51}, Greedy());
  Submit(2, {60}, p);
  Fill();
  ASSERT_EQ(Header(StepHeader::kNumBias), 1);
  EXPECT_EQ(Section(StepHeader::kBiasOffset, 3), (Ints{1, 4, std::bit_cast<int32_t>(-1.5f)}));
  ASSERT_EQ(Header(StepHeader::kNumMasks), 1);
  EXPECT_EQ(Read("mask_rows", 2), (Ints{-1, 0}));
  EXPECT_EQ(Section(StepHeader::kMasksOffset, 4), (Ints{0, 2, 0, 0}));
  EXPECT_LE(used, mirror.size());
}

TEST_F(StepBuilderTest, PromptRowsScoreTheNextPromptTokenAndComeFirst) {
  SamplingParams p = Greedy();
  p.prompt_logprobs = 1;
  Submit(1, {50, 51, 52}, p);
  Fill();
  EXPECT_EQ(Header(StepHeader::kNumRows), 3);
  EXPECT_EQ(key.num_seqs, 3) << "rows count as sequences in a key";
  EXPECT_EQ(Read("logits_indices", 3), (Ints{0, 1, 2}));
  EXPECT_EQ(Read("target_tokens", 3), (Ints{51, 52, -1}));
  EXPECT_EQ(Read("row_slots", 3), (Ints{-1, -1, 0}));
}

TEST_F(StepBuilderTest, EachSequenceHasItsRowsAndAPartOfAPromptHasNone) {
  SamplingParams p = Greedy();
  p.prompt_logprobs = 1;
  Submit(1, {50, 51}, Greedy());
  Submit(2, {60, 61}, p);
  Submit(3, std::vector<TokenId>(20, 70), Greedy());
  Fill();
  EXPECT_EQ(Header(StepHeader::kNumTokens), 16);
  EXPECT_EQ(Read("logits_indices", 3), (Ints{1, 2, 3}));
  EXPECT_EQ(Read("row_start_loc", 4), (Ints{0, 1, 3, 3}));
}

// Its output begins a chunk of its own: behind the rows of the prompt are none then.
TEST_F(StepBuilderTest, TheRowsOfAResumedRequestAreTheLastTokensOfTheirChunk) {
  Request request;
  request.id = RequestId(1);
  request.prompt = {50, 51, 52};
  request.resume_token_ids = {53, 54, 55};
  request.sampling = Greedy();
  request.sampling.prompt_logprobs = 1;
  ASSERT_TRUE(scheduler.Submit(std::move(request)).ok());
  Fill();
  EXPECT_EQ(Read("positions", 2), (Ints{0, 1}));
  EXPECT_EQ(Read("logits_indices", 2), (Ints{0, 1}));
  EXPECT_EQ(Read("row_start_loc", 2), (Ints{0, 2}));
  Fill();
  EXPECT_EQ(Read("positions", 4), (Ints{2, 3, 4, 5}));
  EXPECT_EQ(Read("logits_indices", 1), (Ints{3}));
  EXPECT_EQ(Read("row_start_loc", 2), (Ints{0, 1}));
}

TEST_F(StepBuilderTest, OnlyTheUsedBytesAreCopied) {
  Submit(1, {50, 51}, Greedy());
  Fill();
  EXPECT_EQ(used, StepLayout(Options().limits, key).tail_offset() + 16);
}

}  // namespace
}  // namespace dlcore

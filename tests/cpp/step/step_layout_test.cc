#include "dlcore/step_layout.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace dlcore {
namespace {

StepLimits Limits() {
  StepLimits limits;
  limits.max_num_batched_tokens = 37;
  limits.max_num_seqs = 5;
  limits.max_model_len = 50;
  limits.vocab_size = 100;
  limits.max_logprobs = 3;
  return limits;
}

StepKey Key(SamplerVariant sampler) { return {StepKind::kMixed, sampler, 37, 5, 0}; }

std::vector<std::string> Names(const std::vector<StepField>& fields) {
  std::vector<std::string> names;
  for (const StepField& f : fields) names.emplace_back(f.name);
  return names;
}

// What step_layout.h documents, in its order.
const std::vector<std::string> kGreedyFields = {
    "header",   "token_ids", "positions",      "slot_mapping",  "token_seq", "query_start_loc",
    "seq_lens", "seq_slots", "logits_indices", "row_start_loc", "row_slots", "target_tokens"};
const std::vector<std::string> kRandomFields = {"temperature", "top_p", "min_p",
                                                "top_k",       "seeds", "sample_positions"};
const std::vector<std::string> kFullFields = {"presence_penalty", "frequency_penalty",
                                              "repetition_penalty", "mask_rows", "counts_reset"};

TEST(StepLayout, EachVariantAddsItsFieldsToTheOneBefore) {
  auto want = kGreedyFields;
  EXPECT_EQ(Names(StepLayout(Limits(), Key(SamplerVariant::kGreedy)).inputs()), want);
  want.insert(want.end(), kRandomFields.begin(), kRandomFields.end());
  EXPECT_EQ(Names(StepLayout(Limits(), Key(SamplerVariant::kRandom)).inputs()), want);
  want.insert(want.end(), kFullFields.begin(), kFullFields.end());
  EXPECT_EQ(Names(StepLayout(Limits(), Key(SamplerVariant::kFull)).inputs()), want);
  EXPECT_EQ(Names(StepLayout(Limits(), Key(SamplerVariant::kRandom)).outputs()),
            (std::vector<std::string>{"sampled_tokens"}));
  EXPECT_EQ(StepLayout(Limits(), Key(SamplerVariant::kFull)).outputs().size(), 5u);
}

TEST(StepLayout, FieldsAreAlignedAndDoNotOverlap) {
  for (const auto sampler :
       {SamplerVariant::kGreedy, SamplerVariant::kRandom, SamplerVariant::kFull}) {
    const StepLayout layout(Limits(), Key(sampler));
    for (const auto& fields : {layout.inputs(), layout.outputs()}) {
      size_t end = 0;
      for (const StepField& f : fields) {
        EXPECT_EQ(f.offset % 16, 0u) << f.name;
        EXPECT_GE(f.offset, end) << f.name;
        const auto count = static_cast<size_t>(f.rows * (f.cols == 0 ? 1 : f.cols));
        end = f.offset + count * (f.type == FieldType::kInt64 ? 8 : 4);
      }
      EXPECT_LE(end, &fields == &layout.outputs() ? layout.output_bytes() : end);
    }
    EXPECT_EQ(layout.tail_offset() % 16, 0u);
    EXPECT_LE(layout.InputOffset("target_tokens") + 20, layout.tail_offset());
  }
}

TEST(StepLayout, ShapesFollowTheKey) {
  const StepLayout layout(Limits(), Key(SamplerVariant::kFull));
  for (const StepField& f : layout.inputs()) {
    if (f.name == "token_ids") {
      EXPECT_EQ(f.rows, 37);
    } else if (f.name == "query_start_loc") {
      EXPECT_EQ(f.rows, 6);
    } else if (f.name == "seeds") {
      EXPECT_EQ(f.type, FieldType::kInt64);
    }
  }
  EXPECT_EQ(layout.outputs().back().cols, 3);
  EXPECT_EQ(layout.OutputOffset("sampled_tokens"), 0u);
}

TEST(StepLayout, TheMaximaHoldEveryKey) {
  const StepLimits limits = Limits();
  for (int32_t t = 1; t <= limits.max_num_batched_tokens; t += 4) {
    for (int32_t s = 1; s <= limits.max_num_seqs; ++s) {
      const StepLayout layout(limits, {StepKind::kMixed, SamplerVariant::kFull, t, s, 0});
      EXPECT_LT(layout.tail_offset(), StepLayout::MaxInputBytes(limits));
      EXPECT_LE(layout.output_bytes(), StepLayout::MaxOutputBytes(limits));
    }
  }
}

TEST(StepLayoutDeathTest, AnUnknownFieldIsABug) {
  const StepLayout layout(Limits(), Key(SamplerVariant::kGreedy));
  EXPECT_DEATH((void)layout.InputOffset("temperature"), "no step field temperature");
}

}  // namespace
}  // namespace dlcore

#include "graph/graph_table.h"

#include <algorithm>
#include <random>

#include "graph/cuda_graph_executable.h"
#include "gtest/gtest.h"

namespace dlcore {
namespace {

using enum StepKind;
using enum SamplerVariant;

class Nothing final : public Executable {
 public:
  Status Launch(const StepKey& /*key*/, Stream& /*stream*/) override { return {}; }
};

StepKey Decode(int32_t n, SamplerVariant sampler = kGreedy) { return {kDecode, sampler, n, n, 0}; }

StepKey Mixed(int32_t tokens, int32_t seqs, SamplerVariant sampler = kGreedy) {
  return {kMixed, sampler, tokens, seqs, 0};
}

GraphTable TableOf(std::initializer_list<StepKey> keys) {
  GraphTable table;
  for (const StepKey& key : keys) EXPECT_TRUE(table.Add(key, std::make_unique<Nothing>()).ok());
  return table;
}

StepKey Found(const GraphTable& table, const StepKey& wanted) {
  GraphTable::Selection chosen;
  const Status status = table.Find(wanted, &chosen);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_NE(chosen.executable, nullptr);
  return chosen.key;
}

TEST(GraphTableTest, TheSmallestCoveringBucketRuns) {
  const GraphTable table = TableOf({Decode(8), Decode(1), Decode(32), Mixed(64, 32)});
  EXPECT_EQ(Found(table, Decode(1)), Decode(1));
  EXPECT_EQ(Found(table, Decode(2)), Decode(8));
  EXPECT_EQ(Found(table, Decode(9)), Decode(32));
  EXPECT_EQ(Found(table, Mixed(1, 1)), Mixed(64, 32));
}

TEST(GraphTableTest, ADecodeFallsBackToAMixedBucketNeverTheReverse) {
  const GraphTable table = TableOf({Mixed(64, 16), Decode(64)});
  EXPECT_EQ(Found(table, Decode(17)), Decode(64));
  EXPECT_EQ(Found(TableOf({Mixed(64, 16)}), Decode(3)), Mixed(64, 16));
  GraphTable::Selection chosen;
  EXPECT_EQ(table.Find(Mixed(20, 20), &chosen).code(), StatusCode::kNotFound);
}

TEST(GraphTableTest, ASmallerSamplerFallsBackToALargerNeverTheReverse) {
  const GraphTable table = TableOf({Decode(4, kRandom), Decode(8, kFull)});
  EXPECT_EQ(Found(table, Decode(3, kGreedy)), Decode(4, kRandom));
  EXPECT_EQ(Found(table, Decode(3, kFull)), Decode(8, kFull));
  GraphTable::Selection chosen;
  EXPECT_FALSE(TableOf({Decode(8, kRandom)}).Find(Decode(1, kFull), &chosen).ok());
}

TEST(GraphTableTest, WhatNothingCoversIsNamed) {
  GraphTable::Selection chosen;
  const Status status = TableOf({Decode(8)}).Find(Decode(9), &chosen);
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_NE(status.message().find("decode/greedy/tokens=9"), std::string::npos);
  EXPECT_NE(status.message().find("tokens=8"), std::string::npos) << status.message();
  EXPECT_FALSE(GraphTable().Find(Decode(1), &chosen).ok());
}

TEST(GraphTableTest, AnExactExecutableRunsTheCountsAsked) {
  GraphTable table;
  ASSERT_TRUE(table.SetExact(std::make_unique<Nothing>()).ok());
  EXPECT_EQ(Found(table, Mixed(13, 7, kRandom)), Mixed(13, 7, kRandom));
  EXPECT_FALSE(table.Add(Decode(1), std::make_unique<Nothing>()).ok());
  EXPECT_FALSE(table.SetExact(std::make_unique<Nothing>()).ok());
}

TEST(GraphTableTest, MalformedAndRepeatedKeysAreRefused) {
  GraphTable table = TableOf({Decode(4)});
  EXPECT_FALSE(table.Add(Decode(4), std::make_unique<Nothing>()).ok());
  EXPECT_FALSE(table.Add(Mixed(0, 1), std::make_unique<Nothing>()).ok());
  EXPECT_FALSE(table.Add({kDecode, kGreedy, 8, 4, 0}, std::make_unique<Nothing>()).ok());
}

// Law: whatever is registered, Find returns a covering key with the fewest
// tokens among all covering ones, and fails exactly when there is none.
TEST(GraphTableTest, RandomTablesAgreeWithExhaustiveSearch) {
  std::mt19937 rng(7);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(rng);
  };
  const auto random_key = [&] {
    const auto sampler = static_cast<SamplerVariant>(pick(0, 2));
    return pick(0, 1) == 0 ? Decode(pick(1, 12), sampler)
                           : Mixed(pick(1, 24), pick(1, 12), sampler);
  };
  for (int round = 0; round < 500; ++round) {
    GraphTable table;
    std::vector<StepKey> keys;
    for (int i = pick(0, 12); i > 0; --i) {
      const StepKey key = random_key();
      if (table.Add(key, std::make_unique<Nothing>()).ok()) keys.push_back(key);
    }
    const StepKey wanted = random_key();
    const auto covers = [&](const StepKey& k) {
      return (k.kind == wanted.kind || k.kind == kMixed) && k.sampler >= wanted.sampler &&
             k.num_tokens >= wanted.num_tokens && k.num_seqs >= wanted.num_seqs;
    };
    int32_t fewest = INT32_MAX;
    for (const StepKey& k : keys) {
      if (covers(k)) fewest = std::min(fewest, k.num_tokens);
    }
    GraphTable::Selection chosen;
    const bool found = table.Find(wanted, &chosen).ok();
    ASSERT_EQ(found, fewest != INT32_MAX) << ToString(wanted);
    if (!found) continue;
    EXPECT_TRUE(covers(chosen.key)) << ToString(wanted) << " as " << ToString(chosen.key);
    EXPECT_EQ(chosen.key.num_tokens, fewest);
  }
}

TEST(CudaGraphExecutableTest, NullAndMissingHandlesAreRefused) {
  std::unique_ptr<Executable> executable;
  EXPECT_EQ(NewCudaGraphExecutable({}, &executable).code(), StatusCode::kInvalidArgument);
  const uint64_t handles[] = {1, 0};
  const Status status = NewCudaGraphExecutable(handles, &executable);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("graph_execs[1]"), std::string::npos);
}

}  // namespace
}  // namespace dlcore

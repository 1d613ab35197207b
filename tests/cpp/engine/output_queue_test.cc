#include "engine/output_queue.h"

#include <map>
#include <random>

#include "engine/row_index.h"
#include "gtest/gtest.h"

namespace dlcore {
namespace {

constexpr size_t kNoLimit = SIZE_MAX;

SequenceOutput Row(uint64_t id, const TokenList& tokens,
                   FinishReason reason = FinishReason::kNone) {
  SequenceOutput row;
  row.id = RequestId(id);
  row.tokens = tokens;
  row.finish_reason = reason;
  return row;
}

void Push(OutputQueue& queue, std::vector<SequenceOutput> rows) {
  OutputBatch batch{std::move(rows)};
  queue.Push(&batch);
  EXPECT_TRUE(batch.outputs.empty());
}

OutputBatch Take(OutputQueue& queue) {
  OutputBatch batch;
  (void)queue.Poll(0, &batch);
  return batch;
}

TEST(OutputQueueTest, StepsNobodyReadBecomeOneRowPerRequest) {
  OutputQueue queue;
  ASSERT_TRUE(queue.Open(RequestId(1), kNoLimit).ok());
  ASSERT_TRUE(queue.Open(RequestId(2), kNoLimit).ok());
  Push(queue, {Row(1, {10}), Row(2, {20})});
  Push(queue, {Row(2, {21}), Row(1, {11})});
  Push(queue, {Row(1, {12}, FinishReason::kStop)});
  const OutputBatch batch = Take(queue);
  ASSERT_EQ(batch.outputs.size(), 2u);
  EXPECT_EQ(batch.outputs[0].tokens, (TokenList{10, 11, 12}));
  EXPECT_EQ(batch.outputs[0].finish_reason, FinishReason::kStop);
  EXPECT_EQ(batch.outputs[1].tokens, (TokenList{20, 21}));
  EXPECT_EQ(queue.num_live(), 1u);
}

TEST(OutputQueueTest, ClosingAfterAReadGivesTheLastRowsAlone) {
  OutputQueue queue;
  for (uint64_t id = 1; id <= 3; ++id) ASSERT_TRUE(queue.Open(RequestId(id), kNoLimit).ok());
  Push(queue, {Row(1, {10}), Row(2, {20})});
  Push(queue, {Row(1, {11})});  // merged, so there is an index
  (void)Take(queue);
  queue.Close(FinishReason::kError, "why");
  const OutputBatch batch = Take(queue);
  ASSERT_EQ(batch.outputs.size(), 3u);
  for (const SequenceOutput& row : batch.outputs) {
    EXPECT_TRUE(row.tokens.empty());
    EXPECT_EQ(row.finish_reason, FinishReason::kError);
    EXPECT_EQ(row.error, "why");
  }
}

TEST(OutputQueueTest, NothingComesAfterClose) {
  OutputQueue queue;
  ASSERT_TRUE(queue.Open(RequestId(1), kNoLimit).ok());
  queue.Close(FinishReason::kAbort, "stopped");
  Push(queue, {Row(1, {10})});
  queue.Close(FinishReason::kError, "too late");
  const OutputBatch batch = Take(queue);
  ASSERT_EQ(batch.outputs.size(), 1u);
  EXPECT_EQ(batch.outputs[0].finish_reason, FinishReason::kAbort);
  OutputBatch nothing;
  EXPECT_FALSE(queue.Poll(60, &nothing)) << "and without waiting";
  EXPECT_EQ(queue.Open(RequestId(2), kNoLimit).code(), StatusCode::kUnavailable);
}

TEST(OutputQueueTest, OpenRefusesWhatIsLiveOrTooMany) {
  OutputQueue queue;
  ASSERT_TRUE(queue.Open(RequestId(1), 1).ok());
  EXPECT_EQ(queue.Open(RequestId(1), kNoLimit).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(queue.Open(RequestId(2), 1).code(), StatusCode::kResourceExhausted);
  Push(queue, {Row(1, {}, FinishReason::kAbort)});
  EXPECT_TRUE(queue.Open(RequestId(2), 1).ok());
}

// Law: however reads and steps interleave, each request's tokens come whole, in
// order, and its last row last.
TEST(OutputQueueTest, RandomInterleavingsLoseNothing) {
  std::mt19937 rng(11);
  for (int round = 0; round < 200; ++round) {
    OutputQueue queue;
    std::map<uint64_t, std::vector<TokenId>> sent;
    std::map<uint64_t, std::vector<TokenId>> got;
    std::map<uint64_t, bool> ended;
    uint64_t next_id = 0;
    std::vector<uint64_t> live;
    const auto read = [&] {
      for (const SequenceOutput& row : Take(queue).outputs) {
        ASSERT_FALSE(ended[row.id.value]);
        auto& tokens = got[row.id.value];
        tokens.insert(tokens.end(), row.tokens.begin(), row.tokens.end());
        ended[row.id.value] = row.finish_reason != FinishReason::kNone;
      }
    };
    for (int step = 0; step < 60; ++step) {
      if (rng() % 2 == 0) {
        ASSERT_TRUE(queue.Open(RequestId(next_id), kNoLimit).ok());
        live.push_back(next_id++);
      }
      std::vector<SequenceOutput> rows;
      std::erase_if(live, [&](uint64_t id) {
        const bool last = rng() % 10 == 0;
        const auto token = static_cast<TokenId>(sent[id].size());
        sent[id].push_back(token);
        rows.push_back(Row(id, {token}, last ? FinishReason::kLength : FinishReason::kNone));
        return last;
      });
      Push(queue, std::move(rows));
      if (rng() % 4 == 0) read();
    }
    queue.Close(FinishReason::kAbort, "stopped");
    read();
    EXPECT_EQ(got, sent);
    for (uint64_t id = 0; id < next_id; ++id) EXPECT_TRUE(ended[id]);
  }
}

TEST(RowIndexTest, FindsWhatWasInsertedSinceTheLastClear) {
  std::mt19937_64 rng(3);
  RowIndex index;
  for (int round = 0; round < 50; ++round) {
    index.Clear();
    std::map<uint64_t, size_t> expected;
    for (size_t row = 0; row < rng() % 300; ++row) {
      const uint64_t id = rng() % 1000;
      EXPECT_EQ(index.Find(RequestId(id)) == RowIndex::kNone, !expected.contains(id));
      if (expected.emplace(id, row).second) index.Insert(RequestId(id), row);
    }
    for (const auto& [id, row] : expected) EXPECT_EQ(index.Find(RequestId(id)), row);
  }
}

}  // namespace
}  // namespace dlcore

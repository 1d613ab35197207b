#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <set>
#include <span>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "dlcore/options.h"
#include "dlcore/step_layout.h"
#include "sched/scheduler.h"
#include "tests/cpp/sched/toy_model.h"

namespace dlcore::testing {

// Owns what a step produced until it is committed.
struct FakeResult {
  std::vector<int32_t> tokens, ranks, top_ids;
  std::vector<float> logprobs, top_logprobs;

  [[nodiscard]] StepResult View() const { return {tokens, logprobs, ranks, top_ids, top_logprobs}; }
};

// Runs a step from the bytes of the arena alone, as a GPU would: block tables,
// last tokens, token counts and the KV cache live here and are changed only by
// what the arena says.
class FakeDevice {
 public:
  explicit FakeDevice(const EngineOptions& options)
      : limits_(options.limits),
        kv_(static_cast<size_t>(options.num_kv_blocks) * Size(limits_.block_size), 0xdead),
        block_tables_(Size(limits_.max_num_seqs) * Size(limits_.max_blocks_per_seq()), -1),
        last_tokens_(Size(limits_.max_num_seqs), -1000),
        counts_(Size(limits_.max_num_seqs), 0xbad) {}

  // The KV of token `token` of a sequence whose block table is `blocks`.
  uint64_t& Kv(const std::vector<BlockId>& blocks, int32_t token) {
    const int32_t block = blocks.at(Size(token / limits_.block_size)).value;
    return kv_.at(Size(block * limits_.block_size + token % limits_.block_size));
  }

  // From now on its cache has `count` layers: the one above, written first, and others that
  // hold the same, each in its own way.
  void SetLayers(int32_t count) {
    others_.assign(Size(count - 1), std::vector<uint64_t>(kv_.size(), 0xdead));
  }
  [[nodiscard]] int32_t num_layers() const { return static_cast<int32_t>(others_.size()) + 1; }
  std::vector<uint64_t>& layer(int32_t index) {
    return index == 0 ? kv_ : others_.at(Size(index - 1));
  }
  // Of the step that was run last. REQUIRES: 0 < index < num_layers()
  void WriteLayer(int32_t index) {
    for (int32_t t = 0; t < H(StepHeader::kNumTokens); ++t) {
      layer(index).at(Size(Ints("slot_mapping")[t])) = OtherKv(kv_at_[Size(t)], index);
    }
  }

  FakeResult Run(const StepKey& key, std::span<const std::byte> arena) {
    key_ = key;
    arena_ = arena;
    layout_ = std::make_unique<StepLayout>(limits_, key);
    header_ = Ints("header");
    CheckPadding();
    CheckRows();
    ApplyBlockUpdates();
    WriteKv();
    return SampleRows();
  }

 private:
  static size_t Size(int32_t n) { return static_cast<size_t>(n); }
  [[nodiscard]] const int32_t* Ints(std::string_view field) const {
    return reinterpret_cast<const int32_t*>(arena_.data() + layout_->InputOffset(field));
  }
  [[nodiscard]] const float* Floats(std::string_view field) const {
    return reinterpret_cast<const float*>(Ints(field));
  }
  [[nodiscard]] int32_t H(StepHeader entry) const { return header_[static_cast<size_t>(entry)]; }
  [[nodiscard]] const int32_t* Section(StepHeader offset) const { return header_ + H(offset); }

  void CheckPadding() const {
    const int32_t num_tokens = H(StepHeader::kNumTokens);
    const int32_t num_seqs = H(StepHeader::kNumSeqs);
    const int32_t num_rows = H(StepHeader::kNumRows);
    ASSERT_LE(num_tokens, key_.num_tokens);
    ASSERT_LE(num_seqs, key_.num_seqs);
    ASSERT_LE(num_rows, key_.num_seqs);
    for (int32_t t = num_tokens; t < key_.num_tokens; ++t) {
      ASSERT_EQ(Ints("slot_mapping")[t], -1);
      ASSERT_EQ(Ints("token_seq")[t], -1);
      ASSERT_GE(Ints("token_ids")[t], 0);
    }
    for (int32_t s = num_seqs; s < key_.num_seqs; ++s) {
      ASSERT_EQ(Ints("seq_lens")[s], 0);
      ASSERT_EQ(Ints("seq_slots")[s], -1);
    }
    for (int32_t s = num_seqs; s <= key_.num_seqs; ++s) {
      ASSERT_EQ(Ints("query_start_loc")[s], num_tokens);
      ASSERT_EQ(Ints("row_start_loc")[s], num_rows);
    }
    for (int32_t r = num_rows; r < key_.num_seqs; ++r) {
      ASSERT_EQ(Ints("row_slots")[r], -1);
      ASSERT_EQ(Ints("target_tokens")[r], -1);
      if (key_.sampler == SamplerVariant::kFull) {
        ASSERT_EQ(Ints("mask_rows")[r], -1);
        ASSERT_EQ(Ints("counts_reset")[r], 0);
      }
    }
  }

  // A sequence's rows are its last query tokens.
  void CheckRows() const {
    ASSERT_EQ(Ints("row_start_loc")[0], 0);
    for (int32_t s = 0; s < H(StepHeader::kNumSeqs); ++s) {
      const int32_t end = Ints("row_start_loc")[s + 1];
      ASSERT_LE(Ints("row_start_loc")[s], end);
      for (int32_t r = Ints("row_start_loc")[s]; r < end; ++r) {
        ASSERT_EQ(Ints("logits_indices")[r], Ints("query_start_loc")[s + 1] - (end - r));
      }
    }
  }

  void ApplyBlockUpdates() {
    const int32_t* pairs = Section(StepHeader::kBlockUpdatesOffset);
    for (int32_t i = 0; i < H(StepHeader::kNumBlockUpdates); ++i) {
      block_tables_.at(Size(pairs[2 * i])) = pairs[2 * i + 1];
    }
  }

  // Every token writes its KV, reading all the KV before it through the table.
  void WriteKv() {
    std::set<int32_t> written;
    kv_at_.assign(Size(key_.num_tokens), 0);
    for (int32_t s = 0; s < H(StepHeader::kNumSeqs); ++s) {
      const int32_t slot = Ints("seq_slots")[s];
      const int32_t first = Ints("query_start_loc")[s];
      const int32_t end = Ints("query_start_loc")[s + 1];
      ASSERT_LT(first, end);
      const int32_t seq_len = Ints("seq_lens")[s];
      ASSERT_LE(seq_len, H(StepHeader::kMaxSeqLen));
      ASSERT_LE(end - first, H(StepHeader::kMaxQueryLen));
      CheckOtherLayers(slot, seq_len - (end - first));
      for (int32_t t = first; t < end; ++t) {
        const int32_t position = Ints("positions")[t];
        ASSERT_EQ(position, seq_len - (end - t));
        ASSERT_EQ(Ints("token_seq")[t], s);
        const int32_t target = Ints("slot_mapping")[t];
        ASSERT_EQ(target, KvSlot(slot, position));
        ASSERT_TRUE(written.insert(target).second) << "two writers of one KV slot";
        TokenId token = Ints("token_ids")[t];
        if (token == kPendingToken) token = last_tokens_.at(Size(slot));
        ASSERT_GE(token, 0);
        uint64_t sum = 0;
        for (int32_t i = 0; i < position; ++i)
          sum += Contribution(kv_.at(Size(KvSlot(slot, i))), i);
        kv_at_[Size(t)] = kv_.at(Size(target)) = KvOf(sum, token, position);
      }
    }
  }

  static uint64_t OtherKv(uint64_t kv, int32_t layer) {
    return kv ^ (uint64_t{0x9e3779b97f4a7c15} * static_cast<uint64_t>(layer));
  }

  // What was computed, or came, before this step is whole.
  void CheckOtherLayers(int32_t slot, int32_t num_tokens) {
    for (int32_t l = 1; l < num_layers(); ++l) {
      for (int32_t i = 0; i < num_tokens; ++i) {
        const size_t at = Size(KvSlot(slot, i));
        ASSERT_EQ(layer(l).at(at), OtherKv(kv_.at(at), l)) << "layer " << l << " token " << i;
      }
    }
  }

  [[nodiscard]] int32_t KvSlot(int32_t slot, int32_t position) const {
    const size_t row = Size(slot) * Size(limits_.max_blocks_per_seq());
    const int32_t block = block_tables_.at(row + Size(position / limits_.block_size));
    return block * limits_.block_size + position % limits_.block_size;
  }

  FakeResult SampleRows() {
    FakeResult out;
    const auto rows = Size(key_.num_seqs);
    out.tokens.assign(rows, -1);
    if (key_.sampler == SamplerVariant::kFull) {
      out.logprobs.assign(rows, 0.0f);
      out.ranks.assign(rows, 0);
      out.top_ids.assign(rows * Size(limits_.max_logprobs), 0);
      out.top_logprobs.assign(rows * Size(limits_.max_logprobs), 0.0f);
    }
    for (int32_t row = 0; row < H(StepHeader::kNumRows); ++row) SampleRow(row, &out);
    return out;
  }

  void SampleRow(int32_t row, FakeResult* out) {
    const uint64_t kv = kv_at_.at(Size(Ints("logits_indices")[row]));
    const int32_t slot = Ints("row_slots")[row];
    TokenId token = Ints("target_tokens")[row];
    if (token < 0) {
      if (key_.sampler == SamplerVariant::kFull) ApplyHistory(row, slot);
      token = Sample(kv, InputsOf(row, slot), limits_.vocab_size, MaskOf(row));
      out->tokens[Size(row)] = token;
      last_tokens_.at(Size(slot)) = token;
      if (key_.sampler == SamplerVariant::kFull) counts_.at(Size(slot)) += CountsEntry(token, true);
    }
    if (key_.sampler != SamplerVariant::kFull) return;
    out->logprobs[Size(row)] = LogprobOf(kv, token);
    out->ranks[Size(row)] = 1 + token % 7;
    for (int32_t k = 0; k < limits_.max_logprobs; ++k) {
      const size_t at = Size(row) * Size(limits_.max_logprobs) + Size(k);
      out->top_ids[at] = TopIdOf(kv, k);
      out->top_logprobs[at] = LogprobOf(kv, TopIdOf(kv, k));
    }
  }

  void ApplyHistory(int32_t row, int32_t slot) {
    if (Ints("counts_reset")[row] != 0) counts_.at(Size(slot)) = 0;
    const int32_t* pairs = Section(StepHeader::kHistoryOffset);
    for (int32_t i = 0; i < H(StepHeader::kNumHistory); ++i) {
      if (pairs[2 * i] != row) continue;
      const int32_t entry = pairs[2 * i + 1];
      counts_.at(Size(slot)) +=
          CountsEntry(entry & ~kHistoryOutputFlag, (entry & kHistoryOutputFlag) != 0);
    }
  }

  SamplingInputs InputsOf(int32_t row, int32_t slot) const {
    SamplingInputs in;
    if (key_.sampler >= SamplerVariant::kRandom) {
      in.temperature = Floats("temperature")[row];
      int64_t seed;
      std::memcpy(&seed, reinterpret_cast<const int64_t*>(Ints("seeds")) + row, sizeof(seed));
      in.seed = static_cast<uint64_t>(seed);
      in.sample_position = Ints("sample_positions")[row];
    }
    if (key_.sampler < SamplerVariant::kFull) return in;
    if (Floats("presence_penalty")[row] != 0 || Floats("frequency_penalty")[row] != 0 ||
        Floats("repetition_penalty")[row] != 1) {
      in.counts = counts_.at(Size(slot));
    }
    const int32_t* triples = Section(StepHeader::kBiasOffset);
    for (int32_t i = 0; i < H(StepHeader::kNumBias); ++i) {
      if (triples[3 * i] != row) continue;
      in.bias += BiasEntry(triples[3 * i + 1], std::bit_cast<float>(triples[3 * i + 2]));
    }
    return in;
  }

  [[nodiscard]] std::span<const uint32_t> MaskOf(int32_t row) const {
    if (key_.sampler < SamplerVariant::kFull) return {};
    const int32_t index = Ints("mask_rows")[row];
    if (index < 0) return {};
    EXPECT_LT(index, H(StepHeader::kNumMasks));
    const auto words = Size(limits_.mask_words());
    const auto* masks = reinterpret_cast<const uint32_t*>(Section(StepHeader::kMasksOffset));
    return {masks + Size(index) * words, words};
  }

  StepLimits limits_;
  std::vector<uint64_t> kv_;                   // [num_blocks * block_size]
  std::vector<std::vector<uint64_t>> others_;  // [num_layers - 1, num_blocks * block_size]
  std::vector<int32_t> block_tables_;          // [max_num_seqs, max_blocks_per_seq]
  std::vector<TokenId> last_tokens_;           // [max_num_seqs]
  std::vector<uint64_t> counts_;               // [max_num_seqs] digest of the token counts
  StepKey key_;
  std::span<const std::byte> arena_;
  std::unique_ptr<StepLayout> layout_;
  const int32_t* header_ = nullptr;
  std::vector<uint64_t> kv_at_;  // [T] the KV each token of the step wrote
};

}  // namespace dlcore::testing

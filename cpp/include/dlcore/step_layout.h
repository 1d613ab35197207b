#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace dlcore {

// Each variant includes the one before; a batch runs the smallest that serves
// every row of it.
enum class SamplerVariant : uint8_t {
  kGreedy = 0,  // argmax
  kRandom = 1,  // + temperature, top-k, top-p, min-p, seeds
  kFull = 2,    // + penalties, bias, masks, logprobs
};

enum class StepKind : uint8_t {
  kDecode = 0,  // every sequence has exactly one query token: T == S, row i is token i
  kMixed = 1,   // any mix of prefill chunks and decodes
};

// Names one captured graph. Counts are bucket sizes; the arena's header holds
// the real counts.
struct StepKey {
  StepKind kind = StepKind::kMixed;
  SamplerVariant sampler = SamplerVariant::kGreedy;
  int32_t num_tokens = 0;  // T
  int32_t num_seqs = 0;    // S: sequences, and also rows of logits
  int32_t spec_len = 0;    // draft tokens per sequence

  friend auto operator<=>(const StepKey&, const StepKey&) = default;
};

// The sizes every arena is cut from; fixed for an engine's life.
struct StepLimits {
  int32_t max_num_batched_tokens = 2048;
  int32_t max_num_seqs = 256;
  int32_t max_model_len = 4096;
  int32_t block_size = 16;
  int32_t vocab_size = 0;
  int32_t max_logprobs = 20;
  int32_t max_bias_entries = 1024;  // per sequence

  [[nodiscard]] int32_t max_blocks_per_seq() const {
    return (max_model_len + block_size - 1) / block_size;
  }
  [[nodiscard]] int32_t mask_words() const { return (vocab_size + 31) / 32; }
  // Penalty-history entries one step may carry; at least one whole sequence.
  [[nodiscard]] int32_t max_history_entries() const {
    return max_model_len > 65536 ? max_model_len : 65536;
  }
  // block_updates entries one step may carry; at least one whole table.
  [[nodiscard]] int32_t max_block_updates() const {
    return max_blocks_per_seq() > 65536 ? max_blocks_per_seq() : 65536;
  }
};

enum class FieldType : uint8_t { kInt32, kInt64, kFloat32 };

struct StepField {
  std::string_view name;
  FieldType type;
  size_t offset;  // bytes from the start of the arena, 16-aligned
  int64_t rows;   // first dimension
  int64_t cols;   // second dimension, 0 = one-dimensional
};

// Indices into the arena's header, int32[kHeaderSize]. The *_offset entries are
// in int32 units from the start of the arena.
enum class StepHeader : int32_t {
  kNumTokens = 0,
  kNumSeqs = 1,
  kNumRows = 2,
  kNumBlockUpdates = 3,
  kNumHistory = 4,
  kNumBias = 5,
  kNumMasks = 6,
  kMaxSeqLen = 7,
  kMaxQueryLen = 8,
  kBlockUpdatesOffset = 9,  // (flat index into block_tables, block id) pairs
  kHistoryOffset = 10,      // (row, token | kHistoryOutputFlag) pairs
  kBiasOffset = 11,         // (row, token, float bits) triples
  kMasksOffset = 12,        // [num_masks, mask_words] uint32
  kStepSerial = 13,         // names the step in the layer word; never 0
};
inline constexpr int32_t kHeaderSize = 16;

// The layer word: host memory in which a step that runs beside the CPU says, with
// one store, that layers [0, layers_done) of all its tokens' KV are written.
struct LayerWord {
  static constexpr uint64_t Make(int32_t serial, int32_t layers_done) {
    return uint64_t{static_cast<uint32_t>(serial)} << 32 | static_cast<uint32_t>(layers_done);
  }
  // 0 when `word` is of another step.
  static constexpr int32_t LayersDone(uint64_t word, int32_t serial) {
    return static_cast<int32_t>(word >> 32) == serial ? static_cast<int32_t>(word) : 0;
  }
};

// Set in a history entry's token when the sequence generated it (it then counts
// for presence and frequency penalties, not only for repetition).
inline constexpr int32_t kHistoryOutputFlag = 1 << 30;

// Where each field of a step lies, for the input arena and for the outputs.
//
// Input, every step, in this order (T = key.num_tokens, S = key.num_seqs):
//   header            int32 [16]
//   token_ids         int32 [T]    kPendingToken = take last_tokens[slot of its sequence]
//   positions         int32 [T]
//   slot_mapping      int32 [T]    block_id * block_size + offset; -1 = padding, write nothing
//   token_seq         int32 [T]    index of the sequence in this step; -1 = padding
//   query_start_loc   int32 [S+1]  padded with num_tokens
//   seq_lens          int32 [S]    context length after this step; 0 = padding
//   seq_slots         int32 [S]    row of block_tables / last_tokens; -1 = padding
//   logits_indices    int32 [S]    row -> token index whose hidden state is wanted
//   row_start_loc     int32 [S+1]  a sequence's first row; its rows are its last query tokens, in
//                                  their order; padded with num_rows
//   row_slots         int32 [S]    row -> slot; -1 = padding or a prompt-logprob row
//   target_tokens     int32 [S]    prompt-logprob rows: the token to score; -1 = sample
// kRandom adds: temperature, top_p, min_p float32 [S]; top_k int32 [S]; seeds int64 [S];
//   sample_positions int32 [S] (the position the sampled token will have: the RNG's counter)
// kFull adds: presence_penalty, frequency_penalty, repetition_penalty float32 [S];
//   mask_rows int32 [S] (row of the masks section, -1 = none);
//   counts_reset int32 [S] (1 = clear this slot's token counts before the history is applied)
// Tail, packed and copied only as far as used: block_updates, history, bias, masks.
//
// Output: sampled_tokens int32 [S] (-1 on padding and prompt-logprob rows); kFull adds
//   sampled_logprobs float32 [S], sampled_ranks int32 [S] (1 = most likely),
//   top_ids int32 [S, max_logprobs], top_logprobs float32 [S, max_logprobs].
class StepLayout {
 public:
  StepLayout(const StepLimits& limits, const StepKey& key);

  [[nodiscard]] const std::vector<StepField>& inputs() const { return inputs_; }
  [[nodiscard]] const std::vector<StepField>& outputs() const { return outputs_; }
  [[nodiscard]] size_t tail_offset() const { return tail_offset_; }  // end of the fixed part
  [[nodiscard]] size_t output_bytes() const { return output_bytes_; }
  // Offset of a named input or output field. REQUIRES: the field exists.
  [[nodiscard]] size_t InputOffset(std::string_view name) const;
  [[nodiscard]] size_t OutputOffset(std::string_view name) const;

  // Bytes that hold any step of an engine with these limits.
  static size_t MaxInputBytes(const StepLimits& limits);
  static size_t MaxOutputBytes(const StepLimits& limits);

 private:
  std::vector<StepField> inputs_;
  std::vector<StepField> outputs_;
  size_t tail_offset_ = 0;
  size_t output_bytes_ = 0;
};

}  // namespace dlcore

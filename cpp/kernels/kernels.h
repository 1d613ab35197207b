#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

// The C ABI of libdlcore_kernels.so, called through ctypes by python/dlcore/ops/kernels.py.
// Every function launches on `stream` and returns a cudaError_t as int; none synchronises or
// allocates, so all can be captured into CUDA graphs. Grids depend on the arguments alone: what
// varies from step to step is read on the device. Pointers are device pointers, 16-byte aligned;
// activations and weights are bf16, row-major and contiguous unless a stride is given.
// T = tokens (bucket), S = sequences (bucket), D = head_dim.

extern "C" {

// out [T, N] = f(x [T, K] . weight^T), 1 <= T <= 16, K a multiple of 64.
//   norm: x is RMS-normalised first, with eps and no weight
//   bias [N], residual [T, N] or null: added
//   swiglu: weight is [2N, K] (gates, ups) and out = silu(gate) * up
//   float_out: out is float32 (not with swiglu)
//   row_tiles: 8-row tiles per block, 0 = choose
int dlk_skinny_linear(const void* x, const void* weight, int norm, float eps, const void* bias,
                      const void* residual, void* out, int num_tokens, int n, int k, int swiglu,
                      int float_out, int row_tiles, cudaStream_t stream);

// out [T, N] = f(x [T, K] . weight^T), N a multiple of 8. RMSNorm (without a weight) between two
// such products: the first writes `out_squares`, which the second reads as `squares`.
struct dlk_product {
  const void* x;
  const void* weight;    // [N, K]; swiglu: [2N, K] (gates, ups), out = silu(gate) * up
  const void* bias;      // [N] or null: added
  const void* residual;  // [T, N] or null: added (not with swiglu)
  void* out;
  const float* squares;  // float32 [num_pieces, T] or null: then products of row t are scaled
  float eps;             //   by 1 / sqrt(sum of squares[:, t] / K + eps)
  float* out_squares;    // float32 [pieces of N, T] or null: of out (not with swiglu), by pieces
  int num_tokens, n, k, num_pieces, swiglu;
  // dlk_norm_space_bytes, zeroed once, or null: then x, whose `squares` are null, is normed, the
  // scales of its rows found by blocks together.
  void* norm_space;
  int norm_patience;  // looks for a scale that another block finds, before it is found once more
};

// How blocks share a product out.
struct dlk_tile {
  int tokens, rows;  // of a block's tile: 32 and 64 or 192, 64 and 64, 128 or 192, 128 and 192;
                     // with swiglu also 192 or 256, and 192
  int splits;        // 1, 2 or 4 blocks share K, each with at least 64 of it
  int stages;        // of 64 values of k in a block's ring: 2 to 16
};
// For tens to hundreds of tokens; K a multiple of 64, pieces of 64 outputs. residual and
// out_squares only with 64 rows, norm_space only with swiglu and up to 512 tokens. With more than
// 128 tokens a tile, squares are slow.
int64_t dlk_norm_space_bytes(void);
int dlk_tile_linear(const dlk_product* args, const dlk_tile* tile, cudaStream_t stream);

// For hundreds of tokens and more; K a multiple of 8, pieces of 256 outputs, no bias or norm_space;
// out_squares only with a residual, squares only without. `group` tiles of 256 tokens go through
// the weight together.
int dlk_wide_linear(const dlk_product* args, int group, cudaStream_t stream);

// The tokens of dlk_argmax for the logits x [S, K] . weight [vocab, K]^T, rounded to bf16 and not
// kept; vocab and K multiples of 8. For hundreds of rows.
int dlk_linear_argmax(const void* x, const void* weight, const int32_t* row_slots, int32_t* sampled,
                      int32_t* last_tokens, void* workspace, int num_rows, int vocab, int k,
                      cudaStream_t stream);

// out = x / rms(x) * weight per row of `dim` <= 16384 values, a multiple of 8; weight may be null.
int dlk_rms_norm(const void* x, const void* weight, float eps, void* out, int rows, int dim,
                 cudaStream_t stream);

// x [T, 2I] (gate, up) -> out [T, I] = silu(gate) * up; I a multiple of 8.
//   stream_rows [T, stream_dim] or null: x is the product of a stream that was to be
//   RMS-normalised first, with stream_eps and no weight: row t of x is multiplied by its 1 / rms
int dlk_silu_and_mul(const void* x, void* out, const void* stream_rows, int stream_dim,
                     float stream_eps, int rows, int inner, cudaStream_t stream);

// A step's new tokens as the projection leaves them, and what happens to their heads.
struct dlk_new_tokens {
  const void* qkv;              // [T, (Hq + 2 Hk) D]
  const void* q_weight;         // [D] or null
  const void* k_weight;         // [D] or null, like q_weight
  const float* cos_sin;         // [max_positions, D]: cosines, then sines
  const int32_t* positions;     // [T]
  const int32_t* slot_mapping;  // [T]: block * block_size + offset; -1 = not written
  float eps;
};
// tokens->qkv -> q_out [T, Hq, D]: q and k normalised per head and rotated; k and v are written to
// kv_cache [blocks, 2, Hk, block_size, D]. D is 64, 128 or 256.
// kv_scales: null for a bf16 cache; float32 [2, Hk] for an E4M3 cache (stored value * scale =
// value).
// stream_rows: as in dlk_silu_and_mul, of qkv.
int dlk_qk_norm_rope_kv_write(const dlk_new_tokens* tokens, void* kv_cache, const float* kv_scales,
                              void* q_out, const void* stream_rows, int stream_dim,
                              float stream_eps, int num_tokens, int num_q_heads, int num_kv_heads,
                              int block_size, int head_dim, cudaStream_t stream);

// What paged attention reads.
struct dlk_attention {
  const void* q;                   // [T, Hq, D]
  void* kv_cache;                  // [blocks, 2, Hk, block_size, D]
  const float* kv_scales;          // null: bf16 cache; float32 [2, Hk]: E4M3 cache
  void* out;                       // [T, Hq, D]
  const int32_t* query_start_loc;  // [S + 1], or null: sequence s is token s
  const int32_t* seq_lens;         // [S], 0 = padding
  const int32_t* seq_slots;        // [S], rows of block_tables, or null: sequence s is row s
  const int32_t* block_tables;     // [*, max_blocks]
  float* workspace;                // zeroed once: dlk_decode_workspace_bytes, or prefill's
  float scale;                     // of q . k
  int num_tokens, num_seqs;        // buckets
  int num_q_heads, num_kv_heads, head_dim, block_size, max_blocks;
  int num_blocks;  // of the cache
  // Decode: not 0 where all tokens of a sequence but its last are of earlier steps. They are then
  // read while the kernel before this one runs.
  int only_last_is_new;
};
int64_t dlk_decode_workspace_bytes(int max_num_seqs, int num_kv_heads, int head_dim);
// Sequences with exactly one query token (others are skipped). D is 64 or 128, Hq / Hk <= 8,
// block_size a power of two >= 16.
int dlk_decode_attention(const dlk_attention* args, cudaStream_t stream);

// dlk_qk_norm_rope_kv_write and dlk_decode_attention at once, with the same results. Sequence s is
// token s (args->query_start_loc is null), Hq / Hk <= 7, args->q is not read.
int dlk_decode_projected(const dlk_attention* args, const dlk_new_tokens* tokens,
                         cudaStream_t stream);

// The qkv projection and dlk_qk_norm_rope_kv_write at once, with the same results: `product` is
// dlk_tile_linear's of 64 tokens by 128 rows, without bias, residual and swiglu; its out is q_out,
// its tokens are `tokens`, whose qkv is not read. D is 128.
int dlk_project_heads(const dlk_product* product, int stages, const dlk_new_tokens* tokens,
                      void* kv_cache, const float* kv_scales, int num_q_heads, int num_kv_heads,
                      int block_size, cudaStream_t stream);

int64_t dlk_prefill_workspace_bytes(void);
// Sequences with more than `min_query` query tokens (others are skipped), causal. D is 128,
// block_size a power of two from 16 to 128.
int dlk_prefill_attention(const dlk_attention* args, int min_query, cudaStream_t stream);

// dlk_decode_attention, and beside it dlk_prefill_attention of the sequences with more query
// tokens; of both the conditions. args->workspace is decode attention's.
int dlk_mixed_attention(const dlk_attention* args, void* prefill_workspace, cudaStream_t stream);

// Starts a step: block_tables[flat index] = block for each update of the arena, and
// token_ids_out [T] int64 = token_ids, with pending ones (-1) replaced by the token their
// sequence sampled last. Padding becomes 0.
int dlk_begin_step(const int32_t* arena, const int32_t* header, const int32_t* token_ids,
                   const int32_t* token_seq, const int32_t* seq_slots, const int32_t* last_tokens,
                   int32_t* block_tables, int64_t* token_ids_out, int num_tokens, int num_seqs,
                   cudaStream_t stream);

// *layer_word = {header's step serial, layers_done}: layers [0, layers_done) of the step are done,
// and whoever reads the word sees their KV. layer_word: 8-byte aligned host memory, pinned.
int dlk_report_layer(const int32_t* header, uint64_t* layer_word, int layers_done,
                     cudaStream_t stream);

// sampled [S] = argmax of each row of logits [S, vocab] (float32, or bf16), lowest index first;
// -1 where row_slots is -1, else also last_tokens[row_slots[row]].
// workspace: 16 bytes a row, zeroed once.
int dlk_argmax(const void* logits, int logits_are_bf16, const int32_t* row_slots, int32_t* sampled,
               int32_t* last_tokens, void* workspace, int num_rows, int vocab, cudaStream_t stream);

struct dlk_sampling {
  const void* logits;                        // [S, vocab] float32, or bf16
  const float *temperature, *top_p, *min_p;  // [S]; temperature <= 0: argmax
  const int32_t* top_k;                      // [S], 0 = all
  const int64_t* seeds;                      // [S]
  const int32_t* positions;                  // [S]
  int32_t* tokens;                           // [S], out
  void* workspace;                           // 16 bytes a row, zeroed once
  int logits_are_bf16, num_rows, vocab;
};
// One draw per row from softmax(logits / temperature) cut by min-p, then top-k, then top-p, as
// python/dlcore/ops/sample.py defines them.
int dlk_random_sample(const dlk_sampling* args, cudaStream_t stream);

// What one draw per row needs.
struct dlk_draw {
  const void* logits;                        // [S, vocab] float32, or bf16
  const int32_t* row_slots;                  // [S], -1: no draw, sampled = -1
  const float *temperature, *top_p, *min_p;  // [S]; temperature 0 = argmax
  const int32_t* top_k;                      // [S], 0 = all
  const int64_t* seeds;                      // [S]
  const int32_t* sample_positions;           // [S]
  int32_t* sampled;                          // [S]
  int32_t* last_tokens;                      // at row_slots
  // Masks, bias and penalties, or null: the arena with its header, and
  const int32_t* arena;
  const int32_t* mask_rows;                                                // [S], -1 = no mask
  const float *presence_penalty, *frequency_penalty, *repetition_penalty;  // [S]
  int32_t* token_counts;  // [*, vocab] at row_slots; counts the drawn token
  int logits_are_bf16, num_rows, vocab;
};
// With rules, sampled is -1 where they allow no token, or a logit is NaN.
// sampled = a draw from softmax(ruled logits / temperature) cut by min-p, top-k (ties of the last
// kept), then top-p, by Gumbel noise keyed by (seed, position, token); exact, without a sort.
int dlk_sample(const dlk_draw* args, cudaStream_t stream);

struct dlk_logprobs {
  const void* logits;            // [S, vocab] float32, or bf16
  const int32_t* target_tokens;  // [S]: the token to score, -1 = sampled
  const int32_t* sampled;        // [S], -1 beside target -1: padding, nothing is written
  float* logprobs;               // [S]
  int32_t* ranks;                // [S], 1 = most likely
  int32_t* top_ids;              // [S, num_top], most likely first, lowest index first; else -1
  float* top_logprobs;           // [S, num_top]; else -inf
  int logits_are_bf16, num_rows, vocab, num_top;  // num_top <= 1024
};
int dlk_logprobs_of(const dlk_logprobs* args, cudaStream_t stream);

}  // extern "C"

#pragma once

#include "kernels/decode_schedule.cuh"
#include "kernels/mixed_attention.cuh"
#include "kernels/mma.cuh"
#include "kernels/paged.cuh"

// One warp's arithmetic of decode attention, 16 tokens at a time. The query heads of a group share
// their KV head's loads, as the 8 columns of
//   S^T [tokens x heads] = K Q^T      and      O^T [D x heads] = V^T P^T,
// so that 16-byte pieces of K and V rows are what mma.sync wants in registers: the order of d
// inside a product is free, and V's pairs of tokens are interleaved with byte permutes.

namespace dlcore::kernels {

struct DecodeParams {
  dlk_attention a;
  dlk_new_tokens tokens;    // of no use where qkv is null: a kernel before made queries and cache
  int block_shift;          // block_size = 1 << block_shift
  int* arrived;             // [S, Hk], zero between launches
  float2* partial_ml;       // [kParts, kMaxGroup]: maximum, sum
  float* partial_o;         // [kParts, kMaxGroup * D]
  PrefillCounters* beside;  // of the prefill attention that runs beside this kernel, or null

  __device__ int Group() const { return a.num_q_heads / a.num_kv_heads; }
  // Where a token's key of one head lies; its value is ValueOffset further on.
  template <int kHeadDim, class Cache>
  __device__ const Cache* KeysAt(int block, int head, int token) const {
    const int64_t rows = static_cast<int64_t>(block * 2 * a.num_kv_heads + head) << block_shift;
    const int offset = token & (a.block_size - 1);
    return static_cast<const Cache*>(a.kv_cache) + (rows + offset) * kHeadDim;
  }
  template <int kHeadDim>
  __device__ int ValueOffset() const {
    return a.num_kv_heads * a.block_size * kHeadDim;
  }
};
// For q, and for what this step adds to the cache.
__device__ __forceinline__ void WaitForHeads(const DecodeParams& p) {
  WaitForPrevious();
  if (p.beside != nullptr && blockIdx.x == 0 && threadIdx.x == 0) {
    TellReady(p.beside, p.a.kv_cache);
  }
}

// A worker, of which there are at most as many as 8 warps on every multiprocessor, cuts at most two
// pairs: the one it begins within, and its last.
inline constexpr size_t kParts = 2 * 8 * kMultiprocessors;

// Where StreamPays: decode_stream.cu.
cudaError_t StreamDecodeAttention(const DecodeParams& p, cudaStream_t stream);

struct Nothing {
  __device__ void operator()() const {}
};

// One warp's share of one (sequence, head).
template <int kHeadDim, class Cache>
struct WarpState {
  using Traits = CacheTraits<Cache>;
  using Raw = typename Traits::Raw;
  static constexpr int kQueryVectors = kHeadDim / 32;
  static constexpr int kHalves = kHeadDim / 64;

  Raw keys[2][kQueryVectors];  // tokens g, g + 8; d = 32 j + 8 t ..
  Raw values[4][kHalves];      // tokens 2t, 2t + 1, 2t + 8, 2t + 9; any 8 of d for each (c, g)
  float o[kHalves * 4][4];     // rows: values' d, 2 j (+ 1) in piece c; columns 2t, 2t + 1
  float max[2], sum[2];        // of columns 2t, 2t + 1

  __device__ void Start() {
#pragma unroll
    for (auto& tile : o) tile[0] = tile[1] = tile[2] = tile[3] = 0;
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }

  // Requests 16 tokens' keys, or values, by load(address). `rows`: [16, D] at this head.
  template <class Load>
  __device__ void LoadKeys(const Cache* rows, int g, int t, Load load) {
#pragma unroll
    for (int j = 0; j < kQueryVectors; ++j) {
      keys[0][j] = load(rows + g * kHeadDim + 32 * j + 8 * t);
      keys[1][j] = load(rows + (g + 8) * kHeadDim + 32 * j + 8 * t);
    }
  }
  template <class Load>
  __device__ void LoadValues(const Cache* rows, int g, int t, Load load) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = 2 * t + (i % 2) + (i / 2) * 8;
#pragma unroll
      for (int c = 0; c < kHalves; ++c) {
        values[i][c] = load(rows + token * kHeadDim + 64 * c + 8 * g);
      }
    }
  }

  // Replaces a loaded token by the one that the cache may not hold yet. value_column(c): which d
  // values[i][c] begin at.
  template <class ValueColumn>
  __device__ void Replace(int token, const Cache* key, const Cache* value, int g, int t,
                          ValueColumn value_column) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      if (g + 8 * row != token) continue;
#pragma unroll
      for (int j = 0; j < kQueryVectors; ++j) {
        keys[row][j] = *reinterpret_cast<const Raw*>(key + 32 * j + 8 * t);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (2 * t + (i % 2) + (i / 2) * 8 != token) continue;
#pragma unroll
      for (int c = 0; c < kHalves; ++c) {
        values[i][c] = *reinterpret_cast<const Raw*>(value + value_column(c));
      }
    }
  }

  // Adds the loaded tokens, of which the first num_valid >= 1 count. query: this lane's values of
  // q, column g, d = 32 j + 8 t .., kQueryStride apart; keys_used, values_used: what to do as soon
  // as their registers are free; kTwoChains: a product does not wait for the one before it.
  template <int kQueryStride, bool kTwoChains, class KeysUsed = Nothing, class ValuesUsed = Nothing>
  __device__ void Step(int num_valid, float scale, const uint4* query, int g, int t,
                       KeysUsed keys_used = {}, ValuesUsed values_used = {}) {
    float s[4] = {0, 0, 0, 0};
    [[maybe_unused]] float second[4] = {0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < kQueryVectors; ++j) {
      const uint4 lo = Traits::Convert(keys[0][j]), hi = Traits::Convert(keys[1][j]);
      const uint32_t a0[4] = {lo.x, hi.x, lo.y, hi.y}, a1[4] = {lo.z, hi.z, lo.w, hi.w};
      const uint4 q = query[kQueryStride * j];
      Mma(s, a0, q.x, q.y, typename Traits::Element{});
      Mma(kTwoChains ? second : s, a1, q.z, q.w, typename Traits::Element{});
    }
    keys_used();
    if constexpr (kTwoChains) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[i] += second[i];
    }
    float shrink[2];
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      s[column] = g < num_valid ? s[column] * scale : -INFINITY;
      s[column + 2] = g + 8 < num_valid ? s[column + 2] * scale : -INFINITY;
      float m = fmaxf(s[column], s[column + 2]);
#pragma unroll
      for (int offset = 4; offset < kWarpSize; offset *= 2) {
        m = fmaxf(m, __shfl_xor_sync(kFullMask, m, offset));
      }
      m = fmaxf(m, max[column]);
      shrink[column] = exp2f(max[column] - m);
      max[column] = m;
      s[column] = exp2f(s[column] - m);
      s[column + 2] = exp2f(s[column + 2] - m);
      sum[column] = sum[column] * shrink[column] + s[column] + s[column + 2];
    }
    const uint32_t p0 = Transpose8x8(Traits::Pack(s[0], s[1]));
    const uint32_t p1 = Transpose8x8(Traits::Pack(s[2], s[3]));
#pragma unroll
    for (int c = 0; c < kHalves; ++c) {
      uint4 rows[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) rows[i] = Traits::Convert(values[i][c]);
      if (num_valid < kWarpTokens) {
        // A token past the end may hold anything, NaN included: its weight is 0, its value must be.
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (2 * t + (i % 2) + (i / 2) * 8 >= num_valid) rows[i] = make_uint4(0, 0, 0, 0);
        }
      }
      AddValues(o + c * 4, 0, rows[0].x, rows[1].x, rows[2].x, rows[3].x, p0, p1, shrink);
      AddValues(o + c * 4, 1, rows[0].y, rows[1].y, rows[2].y, rows[3].y, p0, p1, shrink);
      AddValues(o + c * 4, 2, rows[0].z, rows[1].z, rows[2].z, rows[3].z, p0, p1, shrink);
      AddValues(o + c * 4, 3, rows[0].w, rows[1].w, rows[2].w, rows[3].w, p0, p1, shrink);
    }
    values_used();
  }

  __device__ static void AddValues(float (*tiles)[4], int j, uint32_t v0, uint32_t v1, uint32_t v2,
                                   uint32_t v3, uint32_t p0, uint32_t p1,
                                   const float (&shrink)[2]) {
    float(&tile)[4] = tiles[j];
    tile[0] *= shrink[0], tile[1] *= shrink[1], tile[2] *= shrink[0], tile[3] *= shrink[1];
    const uint32_t a[4] = {__byte_perm(v0, v1, 0x5410), __byte_perm(v0, v1, 0x7632),
                           __byte_perm(v2, v3, 0x5410), __byte_perm(v2, v3, 0x7632)};
    Mma(tile, a, p0, p1, typename Traits::Element{});
  }
};

}  // namespace dlcore::kernels

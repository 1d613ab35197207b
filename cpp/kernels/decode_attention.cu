// Paged attention for sequences with one query token: the time is that of reading their KV.
//
// The query heads of a group share their KV head's loads, as the 8 columns of
//   S^T [tokens x heads] = K Q^T      and      O^T [D x heads] = V^T P^T,
// so K and V go from memory straight into the registers where mma.sync wants them: the order of
// d inside a product is free, and V's pairs of tokens are interleaved with byte permutes.
//
// Work is cut on the device from seq_lens, into units of a few tokens per warp, an equal run of
// them for each block of a fixed grid. While every sequence is short, a block takes whole
// (sequence, KV head) pairs. Otherwise a run may end inside a pair: the block leaves its sums in
// the workspace, and the last of the pair's blocks to arrive merges them.
//
// Before it waits for the previous kernel, a block finds its work and has its first tokens brought
// to L2. (A line that holds this step's own token may come too: the write updates it there.)

#include <algorithm>

#include "kernels/decode_schedule.cuh"
#include "kernels/kernels.h"
#include "kernels/mma.cuh"
#include "kernels/paged.cuh"

namespace dlcore::kernels {
namespace {

constexpr int kEarlySteps = 2;  // of a warp, brought to L2 before the previous kernel ends
constexpr size_t kParts = 2 * kMaxBlocks * kMaxGroup;

struct Params {
  dlk_attention a;
  int block_shift;     // block_size = 1 << block_shift
  int* arrived;        // [S, Hk]
  float2* partial_ml;  // [kParts]: maximum, sum
  float* partial_o;    // [kParts, D]
};

// One warp's share of one (sequence, head).
template <int kHeadDim, class Cache>
struct WarpState {
  using Traits = CacheTraits<Cache>;
  using Raw = typename Traits::Raw;
  static constexpr int kQueryVectors = kHeadDim / 32;
  static constexpr int kHalves = kHeadDim / 64;
  // Whether a step requests the next one's tokens: bf16 leaves no registers for it, and other warps
  // fill the gap.
  static constexpr bool kAhead = sizeof(Cache) == 1;

  Raw keys[2][kQueryVectors];  // tokens g, g + 8; d = 32 j + 8 t ..
  Raw values[4][kHalves];      // tokens 2t, 2t + 1, 2t + 8, 2t + 9; d = 64 c + 8 g ..
  float o[kHalves * 4][4];     // rows d = 64 c + 8 g + 2 j (+ 1), columns 2t, 2t + 1
  float max[2], sum[2];        // of columns 2t, 2t + 1

  __device__ void Start() {
#pragma unroll
    for (auto& tile : o) tile[0] = tile[1] = tile[2] = tile[3] = 0;
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }

  // Requests 16 tokens' keys, or values. `rows`: [16, D] at this head.
  __device__ void LoadKeys(const Cache* rows, int g, int t) {
#pragma unroll
    for (int j = 0; j < kQueryVectors; ++j) {
      keys[0][j] = LoadCache<Raw>(rows + g * kHeadDim + 32 * j + 8 * t);
      keys[1][j] = LoadCache<Raw>(rows + (g + 8) * kHeadDim + 32 * j + 8 * t);
    }
  }
  __device__ void LoadValues(const Cache* rows, int g, int t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = 2 * t + (i % 2) + (i / 2) * 8;
#pragma unroll
      for (int c = 0; c < kHalves; ++c) {
        values[i][c] = LoadCache<Raw>(rows + token * kHeadDim + 64 * c + 8 * g);
      }
    }
  }

  // Adds the loaded tokens, of which the first num_valid >= 1 count, and with kAhead requests the
  // next ones as soon as their registers are free. query: this lane's values of q, column g, d = 8
  // t ..; next: the next keys or null; their values are at + v_offset.
  __device__ void Step(int num_valid, float scale, const uint4* query, const Cache* next,
                       int v_offset, int g, int t) {
    float s[4] = {0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < kQueryVectors; ++j) {
      const uint4 lo = Traits::Convert(keys[0][j]), hi = Traits::Convert(keys[1][j]);
      const uint32_t a0[4] = {lo.x, hi.x, lo.y, hi.y}, a1[4] = {lo.z, hi.z, lo.w, hi.w};
      const uint4 q = query[4 * j];
      Mma(s, a0, q.x, q.y, typename Traits::Element{});
      Mma(s, a1, q.z, q.w, typename Traits::Element{});
    }
    if (kAhead && next != nullptr) LoadKeys(next, g, t);
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
    if (kAhead && next != nullptr) LoadValues(next + v_offset, g, t);
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

// Rows of q in shared memory lie 64 bytes off a multiple of 128: two rows' lanes meet different
// banks.
template <int kHeadDim>
constexpr int kQueryPitch = kHeadDim / 8 + 4;  // of 16 bytes

template <int kHeadDim, class Shape>
struct Shared {
  uint4 query[kMaxGroup][kQueryPitch<kHeadDim>];
  union {
    struct {
      float o[Shape::kWarps][kMaxGroup][kHeadDim];
      float2 ml[Shape::kWarps][kMaxGroup];
    };
    float2 partial_ml[Shape::kBlocks + 1][kMaxGroup];
  };
  int scratch[Shape::kWarps];
  int is_last;
};

template <int kHeadDim, class Cache, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerSm)
    DecodeAttention(const Params p) {
  constexpr int kWarps = Shape::kWarps, kThreads = Shape::kThreads;
  constexpr int kUnitTokens = Shape::kUnitTokens;
  extern __shared__ __align__(16) char shared_bytes[];
  auto& shared = *reinterpret_cast<Shared<kHeadDim, Shape>*>(shared_bytes);
  int* unit_starts = reinterpret_cast<int*>(shared_bytes + sizeof(shared));
  const dlk_attention& a = p.a;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int g = lane / 4, t = lane % 4;
  const int group = a.num_q_heads / a.num_kv_heads;
  const int v_offset = a.num_kv_heads * a.block_size * kHeadDim;
  auto keys_at = [&](int block, int head, int token) {
    const int64_t rows = static_cast<int64_t>(block * 2 * a.num_kv_heads + head) << p.block_shift;
    const int offset = token & (a.block_size - 1);
    return static_cast<const Cache*>(a.kv_cache) + (rows + offset) * kHeadDim;
  };

  AllowNext();
  const int per_block = ScanUnits<Shape>(a, unit_starts, shared.scratch);
  int begin = blockIdx.x * per_block;
  const int end = min(begin + per_block, unit_starts[a.num_seqs] * a.num_kv_heads);
  // Idle blocks make room at once for the next kernel's; the first always waits, for the chain.
  if (begin >= end && blockIdx.x != 0) return;
  if (begin < end && lane == 0) {
    const Segment<Shape> first(a, unit_starts, begin, end);
    for (int token = first.FirstToken(warp); token < first.EndToken(); token += kUnitTokens) {
      const Cache* keys = keys_at(first.Block(token, p.block_shift), first.head, token);
      PrefetchL2(keys, kWarpTokens * kHeadDim * sizeof(Cache));
      PrefetchL2(keys + v_offset, kWarpTokens * kHeadDim * sizeof(Cache));
      if (token >= first.FirstToken(warp) + (kEarlySteps - 1) * kUnitTokens) break;
    }
  }
  for (int e = threadIdx.x; e < kMaxGroup * kQueryPitch<kHeadDim>; e += kThreads) {
    shared.query[0][e] = make_uint4(0, 0, 0, 0);
  }
  __syncthreads();
  WaitForPrevious();

  WarpState<kHeadDim, Cache> state;
  while (begin < end) {
    const Segment<Shape> segment(a, unit_starts, begin, end);
    const int head = segment.head;
    begin = segment.pair_start + segment.unit_end;
    const int query = a.query_start_loc != nullptr ? a.query_start_loc[segment.seq] : segment.seq;
    const int64_t first_head = static_cast<int64_t>(query) * a.num_q_heads + head * group;
    const float k_scale = a.kv_scales != nullptr ? a.kv_scales[head] : 1.0f;
    const float scale = a.scale * k_scale * 1.44269504f;  // exponentials in base 2

    const int end_token = segment.EndToken();
    int token = segment.FirstToken(warp);
    auto load = [&](const Cache* keys) {
      state.LoadKeys(keys, g, t);
      state.LoadValues(keys + v_offset, g, t);
    };
    int block = segment.Block(token, p.block_shift);
    if (state.kAhead && token < end_token) load(keys_at(block, head, token));
    for (int e = threadIdx.x; e < group * kHeadDim / 8; e += kThreads) {
      const uint4 q = Load16(static_cast<const bf16*>(a.q) + first_head * kHeadDim + e * 8);
      shared.query[e / (kHeadDim / 8)][e % (kHeadDim / 8)] = CacheTraits<Cache>::ConvertQuery(q);
    }
    state.Start();
    int next_block = segment.Block(token + kUnitTokens, p.block_shift);
    __syncthreads();
    while (token < end_token) {
      if (!state.kAhead) load(keys_at(block, head, token));
      const int next = token + kUnitTokens;
      const Cache* next_keys = next < end_token ? keys_at(next_block, head, next) : nullptr;
      block = next_block;
      next_block = segment.Block(next + kUnitTokens, p.block_shift);
      state.Step(segment.len - token, scale, &shared.query[g][t], next_keys, v_offset, g, t);
      token = next;
    }

    // Merge the warps.
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      float sum = state.sum[column];
#pragma unroll
      for (int offset = 4; offset < kWarpSize; offset *= 2) {
        sum += __shfl_xor_sync(kFullMask, sum, offset);
      }
      const int member = 2 * t + column;
      if (g == 0) shared.ml[warp][member] = make_float2(state.max[column], sum);
      if (member >= group) continue;
#pragma unroll
      for (int c = 0; c < kHeadDim / 64; ++c) {
        float4* row = reinterpret_cast<float4*>(&shared.o[warp][member][64 * c + 8 * g]);
        const auto* tile = state.o + 4 * c;
        row[0] =
            make_float4(tile[0][column], tile[0][column + 2], tile[1][column], tile[1][column + 2]);
        row[1] =
            make_float4(tile[2][column], tile[2][column + 2], tile[3][column], tile[3][column + 2]);
      }
    }
    __syncthreads();
    const bool complete = segment.unit_begin == 0 && segment.unit_end == segment.num_units;
    // A block is cut at most twice: in the pair it begins within, and in its last.
    const int partial = blockIdx.x * 2 + (segment.pair_start >= blockIdx.x * per_block ? 1 : 0);
    const float v_scale = a.kv_scales != nullptr ? a.kv_scales[a.num_kv_heads + head] : 1.0f;
    auto* out = static_cast<bf16*>(a.out) + first_head * kHeadDim;
    for (int e = threadIdx.x; e < group * kHeadDim; e += kThreads) {
      const int member = e / kHeadDim, d = e % kHeadDim;
      float m = -INFINITY, sum = 0, o = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) m = fmaxf(m, shared.ml[w][member].x);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float2 ml = shared.ml[w][member];
        // A warp without tokens has a maximum of -inf: weight 0. m itself is finite.
        const float weight = exp2f(ml.x - m);
        sum += weight * ml.y;
        o += weight * shared.o[w][member][d];
      }
      if (complete) {
        out[e] = __float2bfloat16(o / sum * v_scale);
      } else {
        p.partial_o[(static_cast<int64_t>(partial) * kMaxGroup + member) * kHeadDim + d] = o;
        if (d == 0) p.partial_ml[partial * kMaxGroup + member] = make_float2(m, sum);
      }
    }
    if (complete) {
      __syncthreads();
      continue;
    }

    // Merge the blocks, in the one that arrives last.
    const int first_block = segment.pair_start / per_block;
    const int num_parts =
        (segment.pair_start + segment.num_units - 1) / per_block - first_block + 1;
    int* arrived = p.arrived + segment.seq * a.num_kv_heads + head;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) shared.is_last = atomicAdd(arrived, 1) == num_parts - 1;
    __syncthreads();
    if (!shared.is_last) continue;
    __threadfence();
    if (threadIdx.x == 0) *arrived = 0;
    auto part = [&](int i) {  // where block first_block + i left its sums
      const int block_index = first_block + i;
      return block_index * 2 + (segment.pair_start >= block_index * per_block ? 1 : 0);
    };
    for (int e = threadIdx.x; e < num_parts * group; e += kThreads) {
      shared.partial_ml[e / group][e % group] =
          __ldcg(p.partial_ml + part(e / group) * kMaxGroup + e % group);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < group * kHeadDim; e += kThreads) {
      const int member = e / kHeadDim, d = e % kHeadDim;
      float m = -INFINITY, sum = 0, o = 0;
      for (int i = 0; i < num_parts; ++i) m = fmaxf(m, shared.partial_ml[i][member].x);
#pragma unroll 8
      for (int i = 0; i < num_parts; ++i) {
        const float2 ml = shared.partial_ml[i][member];
        const float weight = exp2f(ml.x - m);
        sum += weight * ml.y;
        o += weight * __ldcg(p.partial_o +
                             (static_cast<int64_t>(part(i)) * kMaxGroup + member) * kHeadDim + d);
      }
      out[e] = __float2bfloat16(o / sum * v_scale);
    }
    __syncthreads();
  }
}

template <int kHeadDim, class Shape>
cudaError_t RunShape(const Params& p, cudaStream_t stream) {
  const size_t smem = sizeof(Shared<kHeadDim, Shape>) + (p.a.num_seqs + 1) * sizeof(int);
  return Launch(p.a.kv_scales != nullptr ? DecodeAttention<kHeadDim, fp8, Shape>
                                         : DecodeAttention<kHeadDim, bf16, Shape>,
                Shape::kBlocks, Shape::kThreads, smem, stream, p);
}

template <int kHeadDim>
cudaError_t Run(const Params& p, cudaStream_t stream) {
  return p.a.num_seqs * p.a.num_kv_heads >= kManyPairs ? RunShape<kHeadDim, ManyPairs>(p, stream)
                                                       : RunShape<kHeadDim, FewPairs>(p, stream);
}

}  // namespace
}  // namespace dlcore::kernels

int64_t dlk_decode_workspace_bytes(int max_num_seqs, int num_kv_heads, int head_dim) {
  using namespace dlcore::kernels;
  return static_cast<int64_t>(kParts * (sizeof(float2) + head_dim * sizeof(float)) +
                              sizeof(int) * max_num_seqs * num_kv_heads);
}

int dlk_decode_attention(const dlk_attention* args, cudaStream_t stream) {
  using namespace dlcore::kernels;
  const dlk_attention& a = *args;
  if (a.num_q_heads % a.num_kv_heads != 0 || a.num_q_heads / a.num_kv_heads > kMaxGroup ||
      a.num_seqs > kMaxSeqs || a.block_size < kWarpTokens ||
      (a.block_size & (a.block_size - 1)) != 0) {
    return cudaErrorInvalidValue;
  }
  if (a.num_seqs == 0) return cudaSuccess;
  // The counters come last: the only part whose size depends on the bucket, and the only one that
  // must stay zero between launches.
  auto* bytes = reinterpret_cast<char*>(a.workspace);
  Params p{};
  p.a = a;
  while (1 << p.block_shift < a.block_size) ++p.block_shift;
  p.partial_ml = reinterpret_cast<float2*>(bytes);
  bytes += kParts * sizeof(float2);
  p.partial_o = reinterpret_cast<float*>(bytes);
  bytes += kParts * a.head_dim * sizeof(float);
  p.arrived = reinterpret_cast<int*>(bytes);
  switch (a.head_dim) {
    case 64:
      return Run<64>(p, stream);
    case 128:
      return Run<128>(p, stream);
  }
  return cudaErrorInvalidValue;
}

// Paged attention for sequences with one query token: the time is that of reading their KV.
//
// Where a step has many (sequence, KV head) pairs, every warp streams a share of them
// (decode_stream.cu). For fewer, here, the warps of a block share a pair, whose K and V go from
// memory straight into the registers where mma.sync wants them (decode_tile.cuh).
//
// Work is cut on the device from seq_lens, into units of a few tokens per warp, an equal run of
// them for each block of a fixed grid. While every sequence is short, a block takes whole
// (sequence, KV head) pairs. Otherwise a run may end inside a pair: the block leaves its sums in
// the workspace, and the last of the pair's blocks to arrive merges them.
//
// Before it waits for the previous kernel, a block finds its work and has its first tokens brought
// to L2. (A line that holds this step's own token may come too: the write updates it there.) Where
// this block makes the step's own token (decode_query.cuh), tokens that it then reads include that
// one, and those it read before are corrected.

#include "kernels/decode_query.cuh"
#include "kernels/mixed_attention.cuh"

namespace dlcore::kernels {
namespace {

constexpr int kEarlySteps = 2;  // of a warp, brought to L2 before the previous kernel ends

using Params = DecodeParams;

// Rows of q in shared memory lie 64 bytes off a multiple of 128: two rows' lanes meet different
// banks.
template <int kHeadDim>
constexpr int kQueryPitch = kHeadDim / 8 + 4;  // of 16 bytes

template <int kHeadDim, class Cache, class Shape, class Heads>
struct Shared {
  uint4 query[kMaxGroup][kQueryPitch<kHeadDim>];
  NewRows<kHeadDim, Cache> new_rows;
  Segment<Shape> segment;  // at hand again after the products, which leave no registers for it
  union {
    typename Heads::Prepared prepared;
    struct {
      alignas(16) float o[Shape::kWarps][kMaxGroup][kHeadDim];
      float2 ml[Shape::kWarps][kMaxGroup];
    };
    float2 partial_ml[Shape::kBlocks + 1][kMaxGroup];
  };
  int scratch[Shape::kWarps];
  int is_last;
};

template <int kHeadDim, class Cache, class Shape, class Heads>
__global__ void __launch_bounds__(Shape::kBoundThreads, Shape::kBlocksPerSm)
    DecodeAttention(const Params p) {
  constexpr int kWarps = Shape::kWarps, kThreads = Shape::kThreads;
  constexpr int kUnitTokens = Shape::kUnitTokens;
  // Whether a step requests the next one's tokens, and a block its first before the previous kernel
  // ends, where it can. With 16 warps on a multiprocessor bf16 leaves no registers for it, and
  // other warps fill the gap.
  constexpr bool kAhead = sizeof(Cache) == 1 || Shape::kIsRoomy;
  using Raw = typename CacheTraits<Cache>::Raw;
  extern __shared__ __align__(16) char shared_bytes[];
  auto& shared = *reinterpret_cast<Shared<kHeadDim, Cache, Shape, Heads>*>(shared_bytes);
  int* unit_starts = reinterpret_cast<int*>(shared_bytes + sizeof(shared));
  const dlk_attention& a = p.a;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int g = lane / 4, t = lane % 4;
  const int group = a.num_q_heads / a.num_kv_heads;
  const int v_offset = p.ValueOffset<kHeadDim>();
  auto slot_of = [&](int seq) { return a.seq_slots != nullptr ? a.seq_slots[seq] : seq; };

  AllowNext();
  const int per_block = ScanUnits<Shape>(a, unit_starts, shared.scratch);
  int begin = blockIdx.x * per_block;
  const int end = min(begin + per_block, unit_starts[a.num_seqs] * a.num_kv_heads);
  // Idle blocks make room at once for the next kernel's; the first always waits, for the chain.
  if (begin >= end) {
    if (blockIdx.x == 0) WaitForHeads(p);
    return;
  }
  WarpState<kHeadDim, Cache> state;
  const uint64_t policy = EvictFirst();
  auto from_memory = [&](const Cache* p) {
    return Shape::kIsRoomy ? LoadCache<Raw>(p, policy) : LoadCache<Raw>(p);
  };
  auto load = [&](const Cache* keys) {
    state.LoadKeys(keys, g, t, from_memory);
    state.LoadValues(keys + v_offset, g, t, from_memory);
  };
  Segment<Shape> segment(a, unit_starts, slot_of, begin, end);
  if (lane == 0) {
    for (int token = segment.FirstToken(warp); token < segment.EndToken(); token += kUnitTokens) {
      const Cache* keys =
          p.KeysAt<kHeadDim, Cache>(segment.Block(token, p.block_shift), segment.head, token);
      PrefetchL2(keys, kWarpTokens * kHeadDim * sizeof(Cache));
      PrefetchL2(keys + v_offset, kWarpTokens * kHeadDim * sizeof(Cache));
      if (token >= segment.FirstToken(warp) + (kEarlySteps - 1) * kUnitTokens) break;
    }
  }
  for (int e = threadIdx.x; e < kMaxGroup * kQueryPitch<kHeadDim>; e += kThreads) {
    shared.query[0][e] = make_uint4(0, 0, 0, 0);
  }
  Heads::Prepare(p, segment.seq, shared.prepared);
  bool is_loaded = kAhead && Heads::kAddsToken && segment.FirstToken(warp) < segment.EndToken();
  if (is_loaded) {
    const int token = segment.FirstToken(warp);
    load(p.KeysAt<kHeadDim, Cache>(segment.Block(token, p.block_shift), segment.head, token));
  }
  __syncthreads();
  WaitForHeads(p);

  auto advance = [&] {
    begin = segment.pair_start + segment.unit_end;
    if (begin >= end) return;
    segment = Segment<Shape>(a, unit_starts, slot_of, begin, end);
    Heads::Prepare(p, segment.seq, shared.prepared);
  };
  for (; begin < end; advance()) {
    const int kv_head = segment.head;
    const float k_scale = a.kv_scales != nullptr ? a.kv_scales[kv_head] : 1.0f;
    const float scale = a.scale * k_scale * kLog2E;  // exponentials in base 2

    const int end_token = segment.EndToken();
    int token = segment.FirstToken(warp);
    int block = segment.Block(token, p.block_shift);
    if (kAhead && !is_loaded && token < end_token) {
      load(p.KeysAt<kHeadDim, Cache>(block, kv_head, token));
    }
    is_loaded = false;
    if (threadIdx.x == 0) shared.segment = segment;
    Heads::Read(p, segment.seq, kv_head, segment.HasLastToken(), shared.prepared, shared.new_rows,
                shared.query[0], kQueryPitch<kHeadDim>);
    state.Start();
    int next_block = segment.Block(token + kUnitTokens, p.block_shift);
    __syncthreads();
    while (token < end_token) {
      if (!kAhead) load(p.KeysAt<kHeadDim, Cache>(block, kv_head, token));
      if constexpr (kAhead && Heads::kAddsToken) {
        const int last = segment.len - 1 - token;
        if (last < kWarpTokens) {
          state.Replace(last, shared.new_rows.key, shared.new_rows.value, g, t,
                        [&](int c) { return 64 * c + 8 * g; });
        }
      }
      const int next = token + kUnitTokens;
      const Cache* next_keys =
          next < end_token ? p.KeysAt<kHeadDim, Cache>(next_block, kv_head, next) : nullptr;
      block = next_block;
      next_block = segment.Block(next + kUnitTokens, p.block_shift);
      state.template Step<4, false>(
          segment.len - token, scale, &shared.query[g][t], g, t,
          [&] {
            if (kAhead && next_keys != nullptr) state.LoadKeys(next_keys, g, t, from_memory);
          },
          [&] {
            if (kAhead && next_keys != nullptr) {
              state.LoadValues(next_keys + v_offset, g, t, from_memory);
            }
          });
      token = next;
    }

    // Merge the warps.
    segment = shared.segment;
    const int head = segment.head;
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
    const bool complete = segment.IsWholePair();
    // A block is cut at most twice: in the pair it begins within, and in its last.
    const int partial = blockIdx.x * 2 + (segment.pair_start >= blockIdx.x * per_block ? 1 : 0);
    const float v_scale = a.kv_scales != nullptr ? a.kv_scales[a.num_kv_heads + head] : 1.0f;
    const int query = a.query_start_loc != nullptr ? a.query_start_loc[segment.seq] : segment.seq;
    const int64_t first_head = static_cast<int64_t>(query) * a.num_q_heads + head * group;
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

template <int kHeadDim, class Cache, class Shape, class Heads>
cudaError_t RunHeads(const Params& p, cudaStream_t stream) {
  const size_t smem =
      sizeof(Shared<kHeadDim, Cache, Shape, Heads>) + (p.a.num_seqs + 1) * sizeof(int);
  return Launch(DecodeAttention<kHeadDim, Cache, Shape, Heads>, Shape::kBlocks, Shape::kThreads,
                smem, stream, p);
}

template <int kHeadDim, class Shape, class Cache>
cudaError_t RunCache(const Params& p, cudaStream_t stream) {
  return p.tokens.qkv != nullptr
             ? RunHeads<kHeadDim, Cache, Shape, ProjectedHeads<kHeadDim, Cache>>(p, stream)
             : RunHeads<kHeadDim, Cache, Shape, ReadyHeads<kHeadDim, Cache>>(p, stream);
}

template <int kHeadDim, class Shape>
cudaError_t RunShape(const Params& p, cudaStream_t stream) {
  return p.a.kv_scales != nullptr ? RunCache<kHeadDim, Shape, fp8>(p, stream)
                                  : RunCache<kHeadDim, Shape, bf16>(p, stream);
}

template <int kHeadDim>
cudaError_t Run(const Params& p, cudaStream_t stream) {
  const int pairs = p.a.num_seqs * p.a.num_kv_heads;
  if (pairs >= kManyPairs) return RunShape<kHeadDim, ManyPairs>(p, stream);
  if (pairs >= kSomePairs) return RunShape<kHeadDim, SomePairs>(p, stream);
  return pairs >= kFewPairs ? RunShape<kHeadDim, FewPairs>(p, stream)
                            : RunShape<kHeadDim, FewestPairs>(p, stream);
}

}  // namespace

int RunDecodeAttention(const dlk_attention& a, const dlk_new_tokens& tokens,
                       PrefillCounters* beside, cudaStream_t stream) {
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
  p.tokens = tokens;
  p.beside = beside;
  while (1 << p.block_shift < a.block_size) ++p.block_shift;
  p.partial_ml = reinterpret_cast<float2*>(bytes);
  bytes += kParts * kMaxGroup * sizeof(float2);
  p.partial_o = reinterpret_cast<float*>(bytes);
  bytes += kParts * kMaxGroup * a.head_dim * sizeof(float);
  p.arrived = reinterpret_cast<int*>(bytes);
  const int row_bytes = a.head_dim * (a.kv_scales != nullptr ? 1 : 2);
  if (StreamPays(a.num_seqs, a.num_kv_heads, row_bytes)) return StreamDecodeAttention(p, stream);
  switch (a.head_dim) {
    case 64:
      return Run<64>(p, stream);
    case 128:
      return Run<128>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace dlcore::kernels

int64_t dlk_decode_workspace_bytes(int max_num_seqs, int num_kv_heads, int head_dim) {
  using namespace dlcore::kernels;
  return static_cast<int64_t>(kParts * kMaxGroup * (sizeof(float2) + head_dim * sizeof(float)) +
                              sizeof(int) * max_num_seqs * num_kv_heads);
}

int dlk_decode_attention(const dlk_attention* args, cudaStream_t stream) {
  return dlcore::kernels::RunDecodeAttention(*args, {}, nullptr, stream);
}

int dlk_decode_projected(const dlk_attention* args, const dlk_new_tokens* tokens,
                         cudaStream_t stream) {
  using namespace dlcore::kernels;
  if (args->query_start_loc != nullptr || args->num_q_heads / args->num_kv_heads >= kMaxGroup ||
      tokens->qkv == nullptr || !NormsBothOrNone(*tokens)) {
    return cudaErrorInvalidValue;
  }
  return RunDecodeAttention(*args, *tokens, nullptr, stream);
}

// Decode attention for many (sequence, KV head) pairs. Every warp is a worker of its own: the copy
// engine brings its tokens, in order, into a ring of its own in shared memory, and a place of the
// ring is requested anew as soon as its tokens are in registers. So all warps of the card always
// have requests in flight, whatever they compute or wait for; nothing waits for other warps.
//
// A pair that is cut ends in several warps: each leaves its sums in the workspace, unless it sees
// that it is the last, which merges them.
//
// Where queries come from the projection, those of a warp's second pair and of later ones come
// through the ring too, before their tokens. Tokens of
// earlier steps are requested before the previous kernel ends: all of them where the token that
// this step adds comes from the projection (decode_query.cuh).

#include <algorithm>

#include "kernels/barrier.cuh"
#include "kernels/decode_merge.cuh"
#include "kernels/decode_query.cuh"

namespace dlcore::kernels {
namespace {

// Of a block: leaves room for one of the next kernel, which brings its first weights.
constexpr int kRingsBytes = 128 * 1024;

template <int kWarps, int kHeadDim, class Cache>
struct Ring {
  static constexpr int kRowBytes = kHeadDim * sizeof(Cache);
  static constexpr int kStages = kRingsBytes / kWarps / (2 * kWarpTokens * kRowBytes);
  struct Stage {
    Cache keys[kWarpTokens * kHeadDim], values[kWarpTokens * kHeadDim];
  };
  Stage stages[kStages];
};

template <class Raw>
__device__ __forceinline__ void SwapIf(bool swap, Raw& a, Raw& b) {
  const Raw x = swap ? b : a, y = swap ? a : b;
  a = x, b = y;
}

// From the ring to registers. Rows lie a multiple of 128 bytes apart, so lanes of different rows
// read different columns at a time, and put them right afterwards: less of them meet in a bank.
template <class Stage, int kHeadDim, class Cache>
__device__ __forceinline__ void ReadStage(const Stage& stage, int g, int t,
                                          WarpState<kHeadDim, Cache>& state) {
  using State = WarpState<kHeadDim, Cache>;
  using Raw = typename State::Raw;
  auto read = [](const Cache* p) { return *reinterpret_cast<const Raw*>(p); };
  const int odd_row = g % 2, odd_token = t % 2;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
#pragma unroll
    for (int j = 0; j < State::kQueryVectors; ++j) {
      const Cache* keys = stage.keys + (g + 8 * row) * kHeadDim + 8 * t;
      state.keys[row][j] = read(keys + 32 * (j ^ odd_row));
    }
#pragma unroll
    for (int j = 0; j < State::kQueryVectors; j += 2) {
      SwapIf(odd_row, state.keys[row][j], state.keys[row][j + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = 2 * t + (i % 2) + (i / 2) * 8;
    const Cache* values = stage.values + token * kHeadDim + 8 * State::kHalves * g;
    if constexpr (State::kHalves == 1) {
      state.values[i][0] = read(values);
    } else {
      state.values[i][0] = read(values + 8 * odd_token);
      state.values[i][1] = read(values + 8 * (1 - odd_token));
      SwapIf(odd_token, state.values[i][0], state.values[i][1]);
    }
  }
}

// The run's units in the order in which they are requested, and before each pair's what its queries
// are made of, but for the first pair's.
template <class Shape, int kHeadDim, class Cache, class Query>
struct Requests {
  using Ring = Ring<Shape::kWarps, kHeadDim, Cache>;
  using WarpSegment = Segment<Shape>;
  const DecodeParams& p;
  const SeqTable& seqs;
  int end;  // of the run
  WarpSegment segment;
  int unit;                    // the next
  int window;                  // lane i holds the block of unit window + i in blocks, of 32 more in
  int blocks, next_blocks;     // next_blocks
  int position = 0, slot = 0;  // of the segment's last token, where this kernel adds it
  bool at_queries, done;
  const uint64_t policy = EvictFirst();

  __device__ Requests(const DecodeParams& params, const SeqTable& table, int begin, int run_end)
      : p(params),
        seqs(table),
        end(run_end),
        segment(seqs.SegmentAt<Shape>(p.a, begin, end)),
        done(false) {
    BeginSegment();
    at_queries = false;
  }
  __device__ void BeginSegment() {
    at_queries = Query::kAddsToken;
    if constexpr (Query::kAddsToken) {
      position = p.tokens.positions[segment.seq];
      slot = p.tokens.slot_mapping[segment.seq];
    }
    unit = window = segment.unit_begin;
    blocks = BlockOf(unit);
    next_blocks = BlockOf(unit + kWarpSize);
  }
  __device__ int BlockOf(int first_unit) const {
    return segment.Block((first_unit + static_cast<int>(threadIdx.x) % kWarpSize) * kWarpTokens,
                         p.block_shift);
  }
  // Whether the next request is for what the kernels before this one write.
  __device__ bool NeedsPrevious() const {
    if (Query::kAddsToken) return at_queries;
    return p.a.only_last_is_new == 0 || (unit + 1) * kWarpTokens >= segment.len;
  }
  __device__ typename Query::Rows Queries() const {
    return Query::InMemory(p, segment.seq, segment.head, position);
  }

  // Requests what comes next; its bytes complete `full`.
  __device__ void Next(typename Ring::Stage* stage, uint64_t* full, int* stage_slot) {
    if constexpr (Query::kAddsToken) {
      if (at_queries) {
        at_queries = false;
        if (threadIdx.x % kWarpSize != 0) return;
        *stage_slot = slot;
        Query::Request(p, Queries(), reinterpret_cast<char*>(stage), full);
        return;
      }
    }
    const int token = unit * kWarpTokens;
    const int block = __shfl_sync(kFullMask, blocks, unit - window);
    if (threadIdx.x % kWarpSize == 0) {
      const int num_cached = segment.len - token - (Query::kAddsToken ? 1 : 0);
      const int bytes = min(kWarpTokens, num_cached) * Ring::kRowBytes;
      const auto* keys = p.KeysAt<kHeadDim, Cache>(block, segment.head, token);
      ArriveExpecting(full, 2 * bytes);
      if (bytes > 0) {
        CopyBulk(stage->keys, keys, bytes, full, policy);
        CopyBulk(stage->values, keys + p.ValueOffset<kHeadDim>(), bytes, full, policy);
      }
    }
    Advance();
  }
  __device__ void Advance() {
    ++unit;
    if (unit * kWarpTokens >= segment.EndToken()) {
      const int begin = segment.pair_start + segment.unit_end;
      done = begin >= end;
      if (done) {
        AllowNext();  // earlier, its requests would compete with those of K and V
        return;
      }
      segment = seqs.SegmentAt<Shape>(p.a, begin, end);
      BeginSegment();
    } else if (unit == window + kWarpSize) {
      window = unit;
      blocks = next_blocks;
      next_blocks = BlockOf(unit + kWarpSize);
    }
  }
};

template <class Shape, int kHeadDim, class Cache, class Query>
__global__ void __launch_bounds__(Shape::kThreads, 1) StreamDecode(const DecodeParams p) {
  constexpr int kWarps = Shape::kWarps;
  using Ring = Ring<kWarps, kHeadDim, Cache>;
  using Sums = Sums<kHeadDim, Cache>;
  extern __shared__ __align__(128) char shared_bytes[];
  __shared__ uint64_t barriers[kWarps][Ring::kStages];
  __shared__ int3 scratch[kWarps];
  __shared__ NewRows<kHeadDim, Cache> new_rows[Query::kAddsToken ? kWarps : 1];
  __shared__ int stage_slots[kWarps][Ring::kStages];
  const dlk_attention& a = p.a;
  const SeqTable seqs(shared_bytes + kWarps * sizeof(Ring), a.num_seqs);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int g = lane / 4, t = lane % 4;
  const int group = a.num_q_heads / a.num_kv_heads;
  auto* stages = reinterpret_cast<Ring*>(shared_bytes)[warp].stages;
  uint64_t* full = barriers[warp];

  if (p.beside != nullptr) AllowNext();
  if (lane < Ring::kStages) InitBarrier(full + lane, 1);
  FenceBarrierInit();
  const Runs<Shape> runs = CutRuns<Shape>(a, seqs, scratch);
  const int worker = static_cast<int>(blockIdx.x) * kWarps + warp;
  int begin = runs.Begin(worker);
  const int end = runs.Begin(worker + 1);
  if (begin >= end) {
    if (blockIdx.x == 0) WaitForHeads(p);  // for the chain
    return;
  }
  Requests<Shape, kHeadDim, Cache, Query> requests(p, seqs, begin, end);
  NewRows<kHeadDim, Cache>& rows = new_rows[Query::kAddsToken ? warp : 0];
  int* slots = stage_slots[warp];
  auto segment = requests.segment;
  auto queries = requests.Queries();
  int slot = requests.slot, stage = 0;
  while (stage < Ring::kStages && !requests.done && !requests.NeedsPrevious()) {
    requests.Next(stages + stage, full + stage, slots + stage);
    ++stage;
  }
  Query source(p);
  source.LoadEarly(queries);
  WaitForHeads(p);
  while (stage < Ring::kStages && !requests.done) {
    requests.Next(stages + stage, full + stage, slots + stage);
    ++stage;
  }

  WarpState<kHeadDim, Cache> state;
  int parity = 0;
  stage = 0;
  auto release = [&] {  // the place whose bytes are in registers, for the next request
    __syncwarp();
    if (!requests.done) requests.Next(stages + stage, full + stage, slots + stage);
    if (++stage == Ring::kStages) stage = 0, parity ^= 1;
  };
  for (bool in_ring = false;; in_ring = true) {
    begin = segment.pair_start + segment.unit_end;
    const int head = segment.head;
    const int token = a.query_start_loc != nullptr ? a.query_start_loc[segment.seq] : segment.seq;
    const int64_t first_head = static_cast<int64_t>(token) * a.num_q_heads + head * group;
    uint4 query[kHeadDim / 32];
    source.Load(p, queries, head, slot, segment.HasLastToken(), rows, query);
    __syncwarp();
    if (Query::kAddsToken && in_ring) release();
    const float k_scale = a.kv_scales != nullptr ? a.kv_scales[head] : 1.0f;
    const float v_scale = a.kv_scales != nullptr ? a.kv_scales[a.num_kv_heads + head] : 1.0f;
    const float scale = a.scale * k_scale * kLog2E;  // exponentials in base 2
    state.Start();
    const int end_token = segment.EndToken();
    for (int first = segment.unit_begin * kWarpTokens; first < end_token; first += kWarpTokens) {
      Wait(full + stage, parity);
      ReadStage(stages[stage], g, t, state);
      if constexpr (Query::kAddsToken) {
        const int last = segment.len - 1 - first;
        if (last < kWarpTokens) {
          state.Replace(last, rows.key, rows.value, g, t,
                        [&](int c) { return 8 * (state.kHalves * g + c); });
        }
      }
      release();
      state.template Step<1, true>(segment.len - first, scale, query, g, t);
    }
    Sums::Complete(state);
    if (segment.IsWholePair() || Sums::Merge(p, runs, segment, worker, state)) {
      Sums::Store(state, v_scale, group, static_cast<bf16*>(a.out) + first_head * kHeadDim);
    }
    if (begin >= end) break;
    segment = seqs.SegmentAt<Shape>(a, begin, end);
    if constexpr (Query::kAddsToken) {
      Wait(full + stage, parity);
      queries = Query::At(p, reinterpret_cast<const char*>(stages + stage));
      slot = slots[stage];
      source.LoadEarly(queries);
    } else {
      queries = Query::InMemory(p, segment.seq, segment.head, 0);
    }
  }
}

template <class Shape, int kHeadDim, class Cache, class Query>
cudaError_t RunShape(const DecodeParams& p, cudaStream_t stream) {
  static_assert(sizeof(Ring<Shape::kWarps, kHeadDim, Cache>) * Shape::kWarps == kRingsBytes);
  const size_t smem = kRingsBytes + SeqTable::Bytes(p.a.num_seqs);
  return Launch(StreamDecode<Shape, kHeadDim, Cache, Query>, Shape::kBlocks, Shape::kThreads, smem,
                stream, p);
}

template <int kWarps, int kHeadDim, class Cache>
cudaError_t Run(const DecodeParams& p, cudaStream_t stream) {
  using Alone = WarpShape<kWarps>;
  using Ready = ReadyQuery<kHeadDim, Cache>;
  if (p.tokens.qkv != nullptr) {
    return RunShape<Alone, kHeadDim, Cache, ProjectedQuery<kHeadDim, Cache>>(p, stream);
  }
  if constexpr (kHeadDim == 128) {  // prefill attention's
    if (p.beside != nullptr) {
      return RunShape<WarpShape<8, kBesidePrefill>, kHeadDim, Cache, Ready>(p, stream);
    }
  }
  return RunShape<Alone, kHeadDim, Cache, Ready>(p, stream);
}

// One warp on each of a multiprocessor's schedulers while that is enough for all pairs.
cudaError_t RunWideHeads(const DecodeParams& p, cudaStream_t stream) {
  if (p.a.kv_scales != nullptr) return Run<8, 128, fp8>(p, stream);
  const bool few_pairs = p.a.num_seqs * p.a.num_kv_heads <= WarpShape<4>::kWorkers;
  return few_pairs ? Run<4, 128, bf16>(p, stream) : Run<8, 128, bf16>(p, stream);
}

}  // namespace

cudaError_t StreamDecodeAttention(const DecodeParams& p, cudaStream_t stream) {
  switch (p.a.head_dim) {
    case 64:
      return p.a.kv_scales != nullptr ? Run<8, 64, fp8>(p, stream) : Run<8, 64, bf16>(p, stream);
    case 128:
      return RunWideHeads(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace dlcore::kernels

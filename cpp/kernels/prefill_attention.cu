// Causal paged attention for sequences with several query tokens, in a batch of any mix.
//
// A tile of work is 128 query rows of one KV head: a row is a (token, query head of the group)
// pair, so short chunks still fill the tensor cores. One warp brings queries, and tiles of 128 keys
// and values through the block table; two warpgroups of 64 rows each multiply. Within a warpgroup
// the next tile's Q K^T runs before this tile's P V in the tensor cores' queue, so that its softmax
// overlaps P V; the two warpgroups take turns to queue, so that one's softmax overlaps the other's
// products.
//
// An E4M3 cache comes to a place of its own, from where more warps write it as bf16 tiles.
//
// Each block of a fixed grid takes the next tile when it has done one; a sequence's tiles with the
// longest context go first. Which tokens a tile holds is read on the device. The loading
// warp is up to one tile of work ahead. Where tiles are few, blocks share a tile's keys, and the
// last of them to end adds up what all have found.

#include <algorithm>

#include "kernels/kernels.h"
#include "kernels/prefill_merge.cuh"

namespace dlcore::kernels {
namespace {

using Params = PrefillParams;
template <class Cache>
constexpr int kThreads = kConsumers + kHelperWarps<Cache>* kWarpSize;
// A thread's, of those that the block starts with; what the helpers leave is the consumers'.
template <class Cache>
constexpr int kHelperRegisters = sizeof(Cache) == 1 ? 48 : 56;
template <class Cache>
constexpr int kConsumerRegisters = sizeof(Cache) == 1 ? 208 : 224;

// The cache past the context may hold anything, NaN included; its weight is 0, so make it 0.
__device__ void ClearValuesPast(int num_valid, char* values) {
  for (int e = threadIdx.x; e < (kTokens - num_valid) * 16; e += kConsumers) {
    Store16(values + SwizzledOffset(num_valid + e / 16, e % 16), make_uint4(0, 0, 0, 0));
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
}

// The warpgroups' turns to queue products.
__device__ __forceinline__ void TakeTurn(int warpgroup) {
  asm volatile("bar.sync %0, %1;" ::"r"(2 + warpgroup), "n"(kConsumers) : "memory");
}
__device__ __forceinline__ void PassTurn(int warpgroup) {
  asm volatile("bar.arrive %0, %1;" ::"r"(3 - warpgroup), "n"(kConsumers) : "memory");
}

__device__ void StoreRows(const Params& p, const Work& work, const Consumer& c, float v_scale,
                          const int (&rows)[2]) {
  const int group = p.a.num_q_heads / p.a.num_kv_heads, t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float sum = c.sum[i];
    sum += __shfl_xor_sync(kFullMask, sum, 1);
    sum += __shfl_xor_sync(kFullMask, sum, 2);
    const int query = rows[i] / group;
    if (work.first_query + query >= work.num_queries || query >= kRows / group) continue;
    const int64_t token = work.query_start + work.first_query + query;
    const int64_t head = token * p.a.num_q_heads + work.kv_head * group + rows[i] % group;
    auto* out = reinterpret_cast<uint32_t*>(static_cast<bf16*>(p.a.out) + head * kHeadDim);
    const float factor = v_scale / sum;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      out[4 * j + t] = PackBf16(c.o[4 * j + 2 * i] * factor, c.o[4 * j + 2 * i + 1] * factor);
    }
  }
}

// A part of the work, of which this warpgroup has 64 rows; first_load counts all that came before.
template <class Cache>
__device__ void Attend(const Params& p, const Work& work, int buffer, int first_load,
                       Shared<Cache>& shared) {
  const int warp = Uniform(threadIdx.x / kWarpSize), warpgroup = warp / 4;
  const int lane = threadIdx.x % kWarpSize;
  const int group = p.a.num_q_heads / p.a.num_kv_heads;
  const int row = warp * 16 + lane / 4;
  const int rows[2] = {row, row + 8};
  const int positions[2] = {work.Position(rows[0] / group), work.Position(rows[1] / group)};
  const int first_position = work.Position(warpgroup * 64 / group);
  const float* scales = p.a.kv_scales;
  const float k_scale = sizeof(Cache) == 1 ? scales[work.kv_head] : 1.0f;
  const float v_scale = sizeof(Cache) == 1 ? scales[p.a.num_kv_heads + work.kv_head] : 1.0f;
  const float scale = p.a.scale * k_scale * kLog2E;  // exponentials in base 2
  const char* q = shared.q[buffer] + warpgroup * 64 * 128;
  auto token_of = [&](int i) { return (work.end_tile - 1 - i) * kTokens; };
  auto stage_of = [&](int i) { return (first_load + i) % kStages; };
  auto parity_of = [&](int i) { return (first_load + i) / kStages & 1; };
  Consumer c;
  c.Start();
  auto softmax = [&](int i) {
    const int first_token = token_of(i);
    if (first_token + kTokens - 1 > first_position) {
      c.Mask({positions[0] + 1 - first_token, positions[1] + 1 - first_token});
    }
    c.Softmax(scale);
  };

  Wait(&shared.k_full[stage_of(0)], parity_of(0));
  c.MultiplyKeys(q, shared.k[stage_of(0)]);
  WgmmaWait<0>();
  if (lane == 0) Arrive(&shared.k_empty[stage_of(0)]);
  softmax(0);
  c.PackWeights();
  if (token_of(0) + kTokens > work.len) {
    Wait(&shared.v_full[stage_of(0)], parity_of(0));
    ClearValuesPast(work.len - token_of(0), shared.v[stage_of(0)]);
  }
  const int last = work.num_tiles - 1;
  for (int i = 0; i < last; ++i) {
    const int stage = stage_of(i), next_stage = stage_of(i + 1);
    Wait(&shared.k_full[next_stage], parity_of(i + 1));
    TakeTurn(warpgroup);
    c.MultiplyKeys(q, shared.k[next_stage]);
    Wait(&shared.v_full[stage], parity_of(i));
    c.MultiplyValues(shared.v[stage]);
    PassTurn(warpgroup);
    WgmmaWait<1>();
    if (lane == 0) Arrive(&shared.k_empty[next_stage]);
    softmax(i + 1);
    c.MarkSoftmax(&shared.softmax_marks[warp]);
    WgmmaWait<0>();
    if (lane == 0) Arrive(&shared.v_empty[stage]);
    c.Shrink();
    c.PackWeights();
  }
  if (lane == 0) Arrive(&shared.q_empty[buffer]);
  Wait(&shared.v_full[stage_of(last)], parity_of(last));
  c.MultiplyValues(shared.v[stage_of(last)]);
  WgmmaWait<0>();
  if (lane == 0) Arrive(&shared.v_empty[stage_of(last)]);
  if (work.num_parts == 1 || MergeParts(p, work, scale, shared.arrived[warpgroup], c)) {
    StoreRows(p, work, c, v_scale, rows);
  }
}

template <class Cache>
__device__ void Consume(const Params& p, Shared<Cache>& shared) {
  if (Uniform(threadIdx.x / 128) != 0) PassTurn(1);  // the first warpgroup begins
  for (int n = 0, loads = 0;; ++n) {
    const int buffer = n % 2;
    Wait(&shared.q_full[buffer], n / 2 & 1);
    const Work work = shared.work[buffer].OfWarp();
    if (work.len == 0) return;
    Attend(p, work, buffer, loads, shared);
    loads += work.num_tiles;
  }
}

template <class Cache>
__global__ void __launch_bounds__(kThreads<Cache>, 1)
    PrefillAttention(const Params p, const __grid_constant__ CUtensorMap queries,
                     const __grid_constant__ CUtensorMap cache) {
  extern __shared__ __align__(1024) char shared_bytes[];
  auto& shared = *reinterpret_cast<Shared<Cache>*>(
      (reinterpret_cast<uintptr_t>(shared_bytes) + 1023) / 1024 * 1024);
  AllowNext();
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      InitBarrier(&shared.q_full[i], 1);
      InitBarrier(&shared.q_empty[i], kConsumers / kWarpSize);
    }
    for (int i = 0; i < kStages; ++i) {
      InitBarrier(&shared.k_full[i], sizeof(Cache) == 1 ? kConverters : 1);
      InitBarrier(&shared.v_full[i], sizeof(Cache) == 1 ? kConverters : 1);
      InitBarrier(&shared.k_empty[i], kConsumers / kWarpSize);
      InitBarrier(&shared.v_empty[i], kConsumers / kWarpSize);
    }
    InitBarrier(&shared.staged_k_full, 1);
    InitBarrier(&shared.staged_v_full, 1);
    InitBarrier(&shared.staged_k_empty, kConverters);
    InitBarrier(&shared.staged_v_empty, kConverters);
    shared.staged_end = 0;
    FenceBarrierInit();
  }
  __syncthreads();
  const int warp = Uniform(threadIdx.x / kWarpSize);
  if (warp >= kConsumers / kWarpSize) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kHelperRegisters<Cache>));
    if (warp == kConsumers / kWarpSize) {
      Produce(p, &queries, &cache, shared);
    } else if constexpr (sizeof(Cache) == 1) {
      Convert(shared);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kConsumerRegisters<Cache>));
    Consume(p, shared);
  }
}

template <class Cache>
cudaError_t Run(Params p, cudaStream_t stream) {
  const dlk_attention& a = p.a;
  const int group = a.num_q_heads / a.num_kv_heads, queries_per_tile = kRows / group;
  const uint64_t rows = static_cast<uint64_t>(a.num_blocks) * 2 * a.num_kv_heads * a.block_size;
  CUtensorMap queries, cache;
  cudaError_t error =
      EncodeHeads(&queries, a.q, a.num_tokens, a.num_q_heads, kHeadDim, queries_per_tile, group);
  if (error != cudaSuccess) return error;
  // Pairs of E4M3 values are copied as one of bf16.
  error = EncodeMatrix(&cache, a.kv_cache, rows, kHeadDim * sizeof(Cache) / 2, a.block_size);
  if (error != cudaSuccess) return error;
  const int max_tiles = (a.num_tokens / queries_per_tile + a.num_seqs) * a.num_kv_heads;
  p.may_split = a.num_tokens / queries_per_tile * a.num_kv_heads < 2 * kMultiprocessors;
  const int blocks = p.may_split ? kMultiprocessors : std::min(max_tiles, kMultiprocessors);
  // Those that may have to wait for room begin with what is left then.
  p.num_own = p.beside_decode ? std::min(blocks, kMultiprocessors - kBesidePrefill) : blocks;
  return Launch(PrefillAttention<Cache>, blocks, kThreads<Cache>, sizeof(Shared<Cache>) + 1024,
                stream, p, queries, cache);
}

}  // namespace

int RunPrefillAttention(const dlk_attention& a, PrefillWorkspace* workspace, int min_query,
                        bool beside_decode, cudaStream_t stream) {
  if (a.head_dim != kHeadDim || a.num_q_heads % a.num_kv_heads != 0 ||
      a.query_start_loc == nullptr || a.num_q_heads / a.num_kv_heads > kRows || a.block_size < 16 ||
      a.block_size > kTokens || (a.block_size & (a.block_size - 1)) != 0) {
    return cudaErrorInvalidValue;
  }
  if (a.num_seqs == 0 || a.num_tokens == 0) return cudaSuccess;
  Params p{a, 0, min_query, workspace, 0, beside_decode, false};
  while (1 << p.block_shift < a.block_size) ++p.block_shift;
  return a.kv_scales != nullptr ? Run<fp8>(p, stream) : Run<bf16>(p, stream);
}

}  // namespace dlcore::kernels

int64_t dlk_prefill_workspace_bytes() { return sizeof(dlcore::kernels::PrefillWorkspace); }

int dlk_prefill_attention(const dlk_attention* args, int min_query, cudaStream_t stream) {
  using namespace dlcore::kernels;
  auto* workspace = reinterpret_cast<PrefillWorkspace*>(args->workspace);
  return RunPrefillAttention(*args, workspace, min_query, false, stream);
}

// The qkv projection of up to a few hundred tokens, whose heads leave it normed, rotated and, k and
// v, in the paged cache: a block's 128 rows of W are a head, so nothing else is needed for it.

#include <algorithm>

#include "kernels/head_rotation.cuh"
#include "kernels/kernels.h"
#include "kernels/tile_product.cuh"

namespace dlcore::kernels {
namespace {

constexpr int kHeadDim = 128, kTokens = 64;
using Product = tile::Product<kTokens, kHeadDim>;

constexpr int kLanes = kHeadDim / 8;                   // a head's, 8 values each
constexpr int kAtOnce = Product::kConsumers / kLanes;  // tokens
constexpr int kTurns = kTokens / kAtOnce;

struct Params {
  HeadOutputs out;
  dlk_new_tokens new_tokens;
  int num_tokens, k, num_stages;
  tile::Norm norm;
};

// The tokens that a thread's lanes finish, kAtOnce apart: what of them depends on no kernel.
struct Tokens {
  int first, positions[kTurns], slots[kTurns];

  __device__ __forceinline__ explicit Tokens(const Params& p)
      : first(blockIdx.x * kTokens + threadIdx.x / kLanes) {
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int token = min(first + i * kAtOnce, p.num_tokens - 1);
      positions[i] = p.new_tokens.positions[token];
      slots[i] = p.new_tokens.slot_mapping[token];
    }
  }
};

// A lane's values of a token's head, rounded as the projection alone would write them.
__device__ __forceinline__ void LoadHead(const float* sums, float scale, int lane, float (&v)[8]) {
  LoadFloats(sums + lane * 8, v);
#pragma unroll
  for (int j = 0; j < 8; ++j) v[j] *= scale;
  Unpack8(Pack8(v), v);
}

template <class Cache>
__device__ __forceinline__ void Finish(const Params& p, const Tokens& tokens, const float* sums,
                                       const float* scales) {
  const int lane = threadIdx.x % kLanes, head = blockIdx.y;
  const bool rotates = !p.out.IsValue(head);
  const void* weights = p.out.IsQuery(head) ? p.new_tokens.q_weight : p.new_tokens.k_weight;
  uint4 weight = make_uint4(0, 0, 0, 0);
  if (weights != nullptr) weight = Load16(static_cast<const bf16*>(weights) + lane * 8);
  float cosines[kTurns][8], sines[kTurns][8];
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
    const float* angles = p.new_tokens.cos_sin +
                          static_cast<int64_t>(tokens.positions[i]) * kHeadDim +
                          lane % (kLanes / 2) * 8;
    LoadFloats(angles, cosines[i]);
    LoadFloats(angles + kHeadDim / 2, sines[i]);
  }
  tile::SyncSums();
#pragma unroll
  for (int i = 0; i < kTurns; ++i) {
    const int in_tile = threadIdx.x / kLanes + i * kAtOnce;
    float v[8];
    LoadHead(sums + in_tile * Product::kPitch, scales[in_tile], lane, v);
    if (rotates) {  // the whole block, or none
      if (weights != nullptr) NormLanes<kHeadDim>(v, weight, p.new_tokens.eps);
      RotateLanes<kHeadDim>(v, cosines[i], sines[i], lane);
    }
    const int token = tokens.first + i * kAtOnce;
    if (token < p.num_tokens) p.out.Store<kHeadDim, Cache>(token, head, tokens.slots[i], lane, v);
  }
}

template <class Cache>
__global__ void __launch_bounds__(Product::kThreads, 1)
    ProjectHeads(const Params p, const __grid_constant__ CUtensorMap weight,
                 const __grid_constant__ CUtensorMap x) {
  extern __shared__ __align__(1024) char shared_bytes[];
  __shared__ tile::Barriers barriers;
  __shared__ float scales[kTokens];
  AllowNext();
  const int num_tiles = p.k / tile::kTileK;
  const tile::Source source{&weight,
                            &x,
                            0,
                            num_tiles,
                            static_cast<int>(num_tiles * blockIdx.y / gridDim.y),
                            static_cast<int>(blockIdx.y) * kHeadDim,
                            static_cast<int>(blockIdx.x) * kTokens,
                            tile::AlignedRing(shared_bytes),
                            p.num_stages,
                            &barriers,
                            EvictFirst()};
  const Tokens tokens(p);
  Product::Run(
      source, [&](int) { p.norm.ComputeScales(p.num_tokens, p.k, scales); },
      [&](const float* sums) { Finish<Cache>(p, tokens, sums, scales); });
}

template <class Cache>
cudaError_t Run(const Params& p, const dlk_product& product, cudaStream_t stream) {
  CUtensorMap weight, x;
  const int num_heads = p.out.NumHeads();
  cudaError_t error =
      EncodeHeads(&weight, product.weight, 1, num_heads * kHeadDim, p.k, 1, kHeadDim);
  if (error != cudaSuccess) return error;
  error = EncodeMatrix(&x, product.x, p.num_tokens, p.k, kTokens);
  if (error != cudaSuccess) return error;
  const int ring = std::max(p.num_stages * Product::kStageBytes, Product::kSumBytes);
  return Launch(ProjectHeads<Cache>, dim3(CeilDiv(p.num_tokens, kTokens), num_heads),
                Product::kThreads, ring + tile::kAlignment, stream, p, weight, x);
}

}  // namespace
}  // namespace dlcore::kernels

int dlk_project_heads(const dlk_product* product, int stages, const dlk_new_tokens* tokens,
                      void* kv_cache, const float* kv_scales, int num_q_heads, int num_kv_heads,
                      int block_size, cudaStream_t stream) {
  using namespace dlcore::kernels;
  const dlk_product& a = *product;
  if (a.num_tokens < 1 || a.k % tile::kTileK != 0 || stages < 2 || stages > tile::kMaxStages ||
      a.bias != nullptr || a.residual != nullptr || a.swiglu || a.norm_space != nullptr ||
      a.n != (num_q_heads + 2 * num_kv_heads) * kHeadDim || !NormsBothOrNone(*tokens)) {
    return cudaErrorInvalidValue;
  }
  const Params p{
      {static_cast<bf16*>(a.out), kv_cache, kv_scales, num_q_heads, num_kv_heads, block_size},
      *tokens,
      a.num_tokens,
      a.k,
      stages,
      {a.squares, a.num_pieces, a.eps}};
  return kv_scales != nullptr ? Run<fp8>(p, a, stream) : Run<bf16>(p, a, stream);
}

// y = x W^T for some tens to hundreds of tokens.
//
// The product is tile_product.cuh's. Where W has few rows, the blocks of a cluster share k and add
// their sums through each other's shared memory. Bias, residual or SwiGLU on the way out.
//
// RMSNorm between two products needs no kernel of its own: the first also writes each token's sum
// of squares over the block's 64 outputs; the second, whose tokens those are, scales its sums by
// 1 / rms. One warp of a block adds up the squares meanwhile. SwiGLU's tokens may be normed where
// nobody left their squares (shared_norm.cuh).

#include <algorithm>

#include "kernels/kernels.h"
#include "kernels/shared_norm.cuh"
#include "kernels/tile_product.cuh"

namespace dlcore::kernels {
namespace {

constexpr int kMaxRingBytes = 225 * 1024;

struct Params {
  const bf16* bias;      // [N] or null
  const bf16* residual;  // [T, N] or null
  bf16* out;             // [T, N]
  int num_tokens, n, k, num_stages;
  tile::Norm norm;
  SharedNorm shared_norm;
  float* out_squares;  // [ceil(N / 64), T] or null
};

template <int kTokens, int kRows, bool kSwiGlu>
struct Kernel {
  using Product = tile::Product<kTokens, kRows>;
  static constexpr int kConsumers = Product::kConsumers;
  // Blocks on a multiprocessor that registers leave room for.
  static constexpr int kMinBlocks = kTokens <= 64 && kRows <= 128 ? 2 : 1;
  // SwiGLU: half of the tile's rows are gates, half the ups that belong to them.
  static constexpr int kOutRows = kSwiGlu ? kRows / 2 : kRows;
  static constexpr int kFours = kOutRows / 4;  // outputs of a token are written in fours
  // May add a residual and precede a norm.
  static constexpr bool kMakesStream = kRows == 64 && !kSwiGlu;

  static __device__ tile::Source MakeSource(const Params& p, const CUtensorMap* weight,
                                            const CUtensorMap* x, char* ring,
                                            tile::Barriers* barriers) {
    const int num_tiles = p.k / tile::kTileK;
    const int first = num_tiles * blockIdx.z / gridDim.z;
    const int end = num_tiles * (blockIdx.z + 1) / gridDim.z;
    // Blocks begin at different places of k: all at one, they would want the same lines of x.
    const int next = first + (end - first) * blockIdx.y / gridDim.y;
    const int row = blockIdx.y * kOutRows, token = blockIdx.x * kTokens;
    return {weight, x, first, end, next, row, token, ring, p.num_stages, barriers, EvictFirst()};
  }

  // By each of the warps that help.
  static __device__ __forceinline__ void FindScales(const Params& p, float (&scales)[kTokens],
                                                    int helper) {
    if (kSwiGlu && p.shared_norm.space != nullptr) {
      p.shared_norm.Find<Product::kHelpers>(scales, helper);
    } else if (helper == 0) {
      p.norm.ComputeScales(p.num_tokens, p.k, scales);
    }
  }

  // Four outputs of a token: the e-th such group of the tile.
  struct Four {
    int token, row;  // in the tile
    int column;      // of out
    bool inside;
    int64_t offset;  // in out

    __device__ __forceinline__ Four(const Params& p, int e)
        : token(e / kFours), row(e % kFours * 4), column(blockIdx.y * kOutRows + row) {
      const int t = blockIdx.x * kTokens + token;
      inside = token < kTokens && t < p.num_tokens && column < p.n;
      offset = static_cast<int64_t>(t) * p.n + column;
    }
  };
  static __device__ __forceinline__ uint2 LoadFour(const bf16* from, int64_t offset, bool inside) {
    if (from == nullptr || !inside) return make_uint2(0, 0);
    return *reinterpret_cast<const uint2*>(from + offset);
  }
  static __device__ __forceinline__ void Add(float4& v, uint2 four) {
    const float2 lo = ToFloat2(four.x), hi = ToFloat2(four.y);
    v.x += lo.x, v.y += lo.y, v.z += hi.x, v.w += hi.y;
  }

  template <int kRanks>
  static __device__ __forceinline__ float4 Total(const float* sums, float scale) {
    float4 v = SumOverCluster<kRanks>(sums);
    v = {v.x * scale, v.y * scale, v.z * scale, v.w * scale};
    if constexpr (kSwiGlu) {
      const float4 up = SumOverCluster<kRanks>(sums + kOutRows);
      v = {Silu(v.x) * (up.x * scale), Silu(v.y) * (up.y * scale), Silu(v.z) * (up.z * scale),
           Silu(v.w) * (up.w * scale)};
    }
    return v;
  }

  // What the norm after this product needs: half a warp holds 64 outputs of a token.
  static __device__ __forceinline__ void StoreSquares(const Params& p, const Four& four,
                                                      uint2 outputs) {
    const float2 lo = ToFloat2(outputs.x), hi = ToFloat2(outputs.y);
    const float sum = WarpSum<16>(lo.x * lo.x + lo.y * lo.y + hi.x * hi.x + hi.y * hi.y);
    if (four.inside && four.row % 64 == 0) {
      const int token = blockIdx.x * kTokens + four.token;
      p.out_squares[four.column / 64 * p.num_tokens + token] = sum;
    }
  }

  // Of a cluster's blocks each takes every kRanks-th batch of outputs; a thread's are of the same
  // columns in each.
  template <int kRanks>
  static __device__ __forceinline__ void Finish(const Params& p, const float* sums,
                                                const float* scales) {
    constexpr int kBatches = CeilDiv(CeilDiv(kTokens * kFours, kConsumers), kRanks);
    const int first = blockIdx.z * kConsumers + threadIdx.x;
    // What is added comes while blocks meet. Earlier it would cost registers, and with them the
    // next kernel's place beside this one.
    const int column = Four(p, first).column;
    const uint2 bias = LoadFour(p.bias, column, column < p.n);
    uint2 residual[kMakesStream ? kBatches : 1] = {};
#pragma unroll
    for (int j = 0; kMakesStream && j < kBatches; ++j) {
      const Four four(p, first + j * kRanks * kConsumers);
      residual[j] = LoadFour(p.residual, four.offset, four.inside);
    }
    tile::SyncSums();
#pragma unroll
    for (int j = 0; j < kBatches; ++j) {
      const Four four(p, first + j * kRanks * kConsumers);
      uint2 outputs = make_uint2(0, 0);
      if (four.inside) {
        const float* first_sum = sums + four.token * Product::kPitch + four.row;
        float4 v = Total<kRanks>(first_sum, scales[four.token]);
        Add(v, bias);
        if constexpr (kMakesStream) Add(v, residual[j]);
        outputs = make_uint2(PackBf16(v.x, v.y), PackBf16(v.z, v.w));
        *reinterpret_cast<uint2*>(p.out + four.offset) = outputs;
      }
      if constexpr (kMakesStream) {
        if (p.out_squares != nullptr) StoreSquares(p, four, outputs);
      }
    }
  }

  static __device__ __forceinline__ void FinishAny(const Params& p, const float* sums,
                                                   const float* scales) {
    switch (gridDim.z) {
      case 1:
        return Finish<1>(p, sums, scales);
      case 2:
        return Finish<2>(p, sums, scales);
      default:
        return Finish<4>(p, sums, scales);
    }
  }
};

template <int kTokens, int kRows, bool kSwiGlu>
__global__ void __launch_bounds__(Kernel<kTokens, kRows, kSwiGlu>::Product::kThreads,
                                  Kernel<kTokens, kRows, kSwiGlu>::kMinBlocks)
    TileLinear(const Params p, const __grid_constant__ CUtensorMap weight,
               const __grid_constant__ CUtensorMap x) {
  using K = Kernel<kTokens, kRows, kSwiGlu>;
  extern __shared__ __align__(1024) char shared_bytes[];
  __shared__ tile::Barriers barriers;
  __shared__ float scales[kTokens];
  AllowNext();
  const auto source = K::MakeSource(p, &weight, &x, tile::AlignedRing(shared_bytes), &barriers);
  K::Product::Run(
      source, [&](int helper) { K::FindScales(p, scales, helper); },
      [&](const float* sums) { K::FinishAny(p, sums, scales); });
}

struct Launcher {
  const dlk_product& args;
  const dlk_tile& shape;
  cudaStream_t stream;

  Params MakeParams() const {
    return {static_cast<const bf16*>(args.bias),
            static_cast<const bf16*>(args.residual),
            static_cast<bf16*>(args.out),
            args.num_tokens,
            args.n,
            args.k,
            shape.stages,
            {args.squares, args.num_pieces, args.eps},
            {static_cast<const bf16*>(args.x), static_cast<NormSpace*>(args.norm_space),
             args.num_tokens, args.k, args.eps, args.norm_patience},
            args.out_squares};
  }

  template <int kTokens, int kRows, bool kSwiGlu>
  cudaError_t Run() const {
    using K = Kernel<kTokens, kRows, kSwiGlu>;
    const Params p = MakeParams();
    const int ring = std::max(p.num_stages * K::Product::kStageBytes, K::Product::kSumBytes);
    const bool of_stream = p.residual != nullptr || p.out_squares != nullptr;
    if (ring > kMaxRingBytes || (of_stream && !K::kMakesStream)) {
      return cudaErrorInvalidValue;
    }
    CUtensorMap weight_map, x_map;  // the weight's is [gates and ups, n, k]
    constexpr int kParts = kSwiGlu ? 2 : 1;
    cudaError_t error =
        EncodeHeads(&weight_map, args.weight, kParts, p.n, p.k, kParts, K::kOutRows);
    if (error != cudaSuccess) return error;
    error = EncodeMatrix(&x_map, args.x, p.num_tokens, p.k, kTokens);
    if (error != cudaSuccess) return error;
    const dim3 grid(CeilDiv(p.num_tokens, kTokens), CeilDiv(p.n, K::kOutRows), shape.splits);
    return LaunchClusters(TileLinear<kTokens, kRows, kSwiGlu>, grid, dim3(1, 1, shape.splits),
                          K::Product::kThreads, ring + tile::kAlignment, stream, p, weight_map,
                          x_map);
  }

  template <bool kSwiGlu>
  cudaError_t RunShape() const {
    switch (shape.tokens) {
      case 32:
        if (shape.rows == 64) return Run<32, 64, kSwiGlu>();
        return shape.rows == 192 ? Run<32, 192, kSwiGlu>() : cudaErrorInvalidValue;
      case 64:
        if (shape.rows == 64) return Run<64, 64, kSwiGlu>();
        if (shape.rows == 128) return Run<64, 128, kSwiGlu>();
        return shape.rows == 192 ? Run<64, 192, kSwiGlu>() : cudaErrorInvalidValue;
      case 128:
        return shape.rows == 192 ? Run<128, 192, kSwiGlu>() : cudaErrorInvalidValue;
      default:
        return cudaErrorInvalidValue;
    }
  }
  cudaError_t RunSwiGlu() const {
    if (shape.tokens == 192 && shape.rows == 192) return Run<192, 192, true>();
    if (shape.tokens == 256 && shape.rows == 192) return Run<256, 192, true>();
    return RunShape<true>();
  }
};

bool IsKnown(const dlk_product& args, const dlk_tile& shape) {
  const int splits = shape.splits;
  if (args.norm_space != nullptr &&
      (!args.swiglu || args.squares != nullptr || args.num_tokens > NormSpace::kMaxTokens)) {
    return false;
  }
  return (splits == 1 || splits == 2 || splits == 4) && splits * tile::kTileK <= args.k &&
         shape.stages >= 2 && shape.stages <= tile::kMaxStages && args.num_tokens >= 1 &&
         args.n % 8 == 0 && args.k % tile::kTileK == 0;
}

}  // namespace
}  // namespace dlcore::kernels

int64_t dlk_norm_space_bytes(void) { return sizeof(dlcore::kernels::NormSpace); }

int dlk_tile_linear(const dlk_product* args, const dlk_tile* tile, cudaStream_t stream) {
  using namespace dlcore::kernels;
  if (!IsKnown(*args, *tile)) return cudaErrorInvalidValue;
  const Launcher launcher{*args, *tile, stream};
  return args->swiglu ? launcher.RunSwiGlu() : launcher.RunShape<false>();
}

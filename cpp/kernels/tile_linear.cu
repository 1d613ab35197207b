// y = x W^T for some tens to hundreds of tokens: still about the time of reading W once.
//
// A block multiplies 64 or 192 rows of W with 32 to 128 tokens: wgmma's first side are the rows of
// W, so that few tokens waste nothing. One thread brings tiles of 64 values of k through the copy
// engine into a ring of shared memory. W depends on no other kernel: the ring's share of it is
// requested before the previous kernel has ended.
//
// Where W has few rows, the blocks of a cluster share k and add their sums through each other's
// shared memory. Bias, residual or SwiGLU on the way out.
//
// RMSNorm between two products needs no kernel of its own: the first writes its outputs also times
// the norm's weight, and each token's sum of squares over the block's 64 outputs; the second, whose
// tokens those are, scales its sums by 1 / rms. One warp of a block adds up the squares meanwhile.

#include <algorithm>

#include "kernels/cluster.cuh"
#include "kernels/kernels.h"
#include "kernels/tensor_map.cuh"
#include "kernels/wgmma.cuh"

namespace dlcore::kernels {
namespace {

constexpr int kTileK = 64;
constexpr int kRowBytes = kTileK * 2;
constexpr int kMaxStages = 16;
constexpr int kMaxRingBytes = 225 * 1024;

struct Params {
  const bf16* bias;      // [N] or null
  const bf16* residual;  // [T, N] or null
  bf16* out;             // [T, N]
  int num_tokens, n, k, num_tiles, num_stages;
  const float* squares;  // [num_pieces, T] or null: of x's rows
  int num_pieces;
  float eps;
  const bf16* norm_weight;  // [N] or null: then no scaled outputs, no squares of the outputs
  bf16* scaled;             // [T, N]
  float* out_squares;       // [ceil(N / 64), T]
};

struct Barriers {
  uint64_t full[kMaxStages], empty[kMaxStages];
};

__device__ __forceinline__ void SyncClusterIf(bool more_than_one) {
  if (more_than_one) {
    SyncCluster();
  } else {
    __syncthreads();
  }
}

// What a block's producer brings, and where from.
struct Source {
  const CUtensorMap *weight, *x;
  int first, end, next;  // tiles of k: this block's, in a circle
  int weight_row, token_row;
  char* ring;
  Barriers* barriers;

  __device__ __forceinline__ int NextTile() {
    const int tile = next;
    next = tile + 1 == end ? first : tile + 1;
    return tile;
  }
};

template <int kTokens, int kRows, bool kSwiGlu>
struct Tile {
  static constexpr int kConsumers = kRows * 2;  // a warpgroup for 64 rows
  static constexpr int kProducer = kConsumers, kScaler = kConsumers + kWarpSize;  // their threads
  static constexpr int kThreads = kConsumers + 2 * kWarpSize;
  // Blocks on a multiprocessor that registers leave room for.
  static constexpr int kMinBlocks = kRows == 64 ? 2 : 1;
  static constexpr int kWeightBytes = kRows * kRowBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kRowBytes;
  // SwiGLU: half of the tile's rows are gates, half the ups that belong to them.
  static constexpr int kOutRows = kSwiGlu ? kRows / 2 : kRows;
  static constexpr int kFours = kOutRows / 4;  // outputs of a token are written in fours
  static constexpr bool kCanPrecedeNorm = kFours == 16;
  // Sums of a token lie so that the lanes of a warp store to different banks.
  static constexpr int kPitch = kRows + 4;
  static constexpr int kSumBytes = kTokens * kPitch * 4;

  static __device__ Source MakeSource(const Params& p, const CUtensorMap* weight,
                                      const CUtensorMap* x, char* ring, Barriers& barriers) {
    Source s;
    s.weight = weight, s.x = x;
    s.first = p.num_tiles * blockIdx.z / gridDim.z;
    s.end = p.num_tiles * (blockIdx.z + 1) / gridDim.z;
    // Blocks begin at different places of k: all at one, they would want the same lines of x.
    s.next = s.first + (s.end - s.first) * blockIdx.y / gridDim.y;
    s.weight_row = blockIdx.y * kOutRows, s.token_row = blockIdx.x * kTokens;
    s.ring = ring, s.barriers = &barriers;
    return s;
  }
  static __device__ __forceinline__ void LoadWeights(const Source& s, int stage, int tile) {
    ArriveExpecting(&s.barriers->full[stage], kStageBytes);
    CopyHeads(s.ring + stage * kStageBytes, s.weight, 0, s.weight_row, tile * kTileK,
              &s.barriers->full[stage]);
  }
  static __device__ __forceinline__ void LoadTokens(const Source& s, int stage, int tile) {
    CopyBox(s.ring + stage * kStageBytes + kWeightBytes, s.x, s.token_row, tile * kTileK,
            &s.barriers->full[stage]);
  }

  // One thread: the first tiles of weights, before anything is known of other kernels and blocks.
  static __device__ void ProduceFirst(const Params& p, Source s) {
    const int ahead = min(s.end - s.first, p.num_stages);
#pragma unroll 1
    for (int i = 0; i < ahead; ++i) LoadWeights(s, i, s.NextTile());
  }
  // One thread: keeps the ring full.
  static __device__ void Produce(const Params& p, Source s) {
    const int ahead = min(s.end - s.first, p.num_stages);
#pragma unroll 1
    for (int i = 0; i < ahead; ++i) LoadTokens(s, i, s.NextTile());
    int stage = 0, parity = 0;
#pragma unroll 1
    for (int left = s.end - s.first - ahead; left > 0; --left) {
      const int tile = s.NextTile();
      Wait(&s.barriers->empty[stage], parity);
      LoadWeights(s, stage, tile);
      LoadTokens(s, stage, tile);
      if (++stage == p.num_stages) stage = 0, parity ^= 1;
    }
  }

  // One warp: 1 / rms of the tokens.
  static __device__ void ComputeScales(const Params& p, float (&scales)[kTokens]) {
    for (int token = threadIdx.x % kWarpSize; token < kTokens; token += kWarpSize) {
      const int row = min(static_cast<int>(blockIdx.x) * kTokens + token, p.num_tokens - 1);
      float sum = 0;
#pragma unroll 16
      for (int piece = 0; piece < p.num_pieces; ++piece) {
        sum += p.squares[piece * p.num_tokens + row];
      }
      scales[token] = rsqrtf(sum / p.k + p.eps);
    }
  }

  // A warpgroup's 64 rows times all tokens.
  static __device__ void Multiply(const Params& p, float (&sums)[kTokens / 2], const char* ring,
                                  Barriers& barriers, int num_tiles) {
    const bool leads = threadIdx.x % kWarpSize == 0;
    const uint32_t rows = SharedAddress(ring) + threadIdx.x / 128 * 64 * kRowBytes;
    const uint32_t tokens = SharedAddress(ring) + kWeightBytes;
    int stage = 0, parity = 0, previous = 0;
    for (int i = 0; i < num_tiles; ++i) {
      Wait(&barriers.full[stage], parity);
      const uint64_t a = DescriptorKMajor(rows + stage * kStageBytes);
      const uint64_t b = DescriptorKMajor(tokens + stage * kStageBytes);
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < kTileK / 16; ++step) {
        WgmmaShared(sums, a + step * 2, b + step * 2, 1);
      }
      WgmmaCommit();
      WgmmaWait<1>();
      if (i > 0 && leads) Arrive(&barriers.empty[previous]);
      previous = stage;
      if (++stage == p.num_stages) stage = 0, parity ^= 1;
    }
    WgmmaWait<0>();
  }

  static __device__ void StoreSums(const float (&sums)[kTokens / 2], float* shared) {
    const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
    float* row = shared + threadIdx.x / kWarpSize * 16 + g;
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) {
      const int token = i / 4 * 8 + 2 * t + i % 2;
      row[token * kPitch + i / 2 % 2 * 8] = sums[i];
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
  static __device__ __forceinline__ float4 Product(const float* sums, float scale) {
    float4 v = SumOverCluster<kRanks>(sums);
    v = {v.x * scale, v.y * scale, v.z * scale, v.w * scale};
    if constexpr (kSwiGlu) {
      const float4 up = SumOverCluster<kRanks>(sums + kOutRows);
      v = {Silu(v.x) * (up.x * scale), Silu(v.y) * (up.y * scale), Silu(v.z) * (up.z * scale),
           Silu(v.w) * (up.w * scale)};
    }
    return v;
  }

  // What the norm after this product needs: half a warp holds the block's outputs of a token.
  static __device__ __forceinline__ void PrepareNorm(const Params& p, const Four& four,
                                                     uint2 outputs, uint2 weight) {
    const float2 lo = ToFloat2(outputs.x), hi = ToFloat2(outputs.y);
    const float sum = WarpSum<16>(lo.x * lo.x + lo.y * lo.y + hi.x * hi.x + hi.y * hi.y);
    if (!four.inside) return;
    *reinterpret_cast<uint2*>(p.scaled + four.offset) =
        make_uint2(MulBf16x2(outputs.x, weight.x), MulBf16x2(outputs.y, weight.y));
    if (four.row == 0) {
      p.out_squares[blockIdx.y * p.num_tokens + blockIdx.x * kTokens + four.token] = sum;
    }
  }

  // Block `rank` of the cluster's takes every kRanks-th batch of outputs. A thread's are of the
  // same columns in each.
  template <int kRanks>
  static __device__ void Finish(const Params& p, const float* shared, const float* scales) {
    constexpr int kBatches = (kTokens * kFours / kConsumers + kRanks - 1) / kRanks;
    const int first = blockIdx.z * kConsumers + threadIdx.x;
    const int column = Four(p, first).column;
    const uint2 bias = LoadFour(p.bias, column, column < p.n);
    const uint2 norm_weight = LoadFour(p.norm_weight, column, column < p.n);
    uint2 residual[kBatches];
#pragma unroll
    for (int j = 0; j < kBatches; ++j) {
      const Four four(p, first + j * kRanks * kConsumers);
      residual[j] = LoadFour(p.residual, four.offset, four.inside);
    }
    SyncClusterIf(kRanks > 1);
#pragma unroll
    for (int j = 0; j < kBatches; ++j) {
      const Four four(p, first + j * kRanks * kConsumers);
      uint2 outputs = make_uint2(0, 0);
      if (four.inside) {
        const float scale = p.squares == nullptr ? 1.0f : scales[four.token];
        float4 v = Product<kRanks>(shared + four.token * kPitch + four.row, scale);
        Add(v, residual[j]);
        Add(v, bias);
        outputs = make_uint2(PackBf16(v.x, v.y), PackBf16(v.z, v.w));
        *reinterpret_cast<uint2*>(p.out + four.offset) = outputs;
      }
      if constexpr (kCanPrecedeNorm) {
        if (p.norm_weight != nullptr) PrepareNorm(p, four, outputs, norm_weight);
      }
    }
  }
};

template <int kTokens, int kRows, bool kSwiGlu>
__global__ void __launch_bounds__(Tile<kTokens, kRows, kSwiGlu>::kThreads,
                                  Tile<kTokens, kRows, kSwiGlu>::kMinBlocks)
    TileLinear(const Params p, const __grid_constant__ CUtensorMap weight,
               const __grid_constant__ CUtensorMap x) {
  using T = Tile<kTokens, kRows, kSwiGlu>;
  extern __shared__ __align__(1024) char shared_bytes[];
  __shared__ Barriers barriers;
  __shared__ float scales[kTokens];
  char* ring =
      reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared_bytes) + 1023) / 1024 * 1024);
  AllowNext();
  const int num_ranks = gridDim.z;
  const Source source = T::MakeSource(p, &weight, &x, ring, barriers);
  if (threadIdx.x == T::kProducer) {
    for (int i = 0; i < p.num_stages; ++i) {
      InitBarrier(&barriers.full[i], 1);
      InitBarrier(&barriers.empty[i], T::kConsumers / kWarpSize);
    }
    FenceBarrierInit();
    T::ProduceFirst(p, source);
  }
  __syncthreads();
  WaitForPrevious();
  if (threadIdx.x >= T::kConsumers) {
    if (threadIdx.x == T::kProducer) T::Produce(p, source);
    if (threadIdx.x >= T::kScaler && p.squares != nullptr) T::ComputeScales(p, scales);
    __syncwarp();
    __syncthreads();
    SyncClusterIf(num_ranks > 1);
  } else {
    float sums[kTokens / 2] = {};
    T::Multiply(p, sums, ring, barriers, source.end - source.first);
    __syncthreads();  // all warpgroups are done with the ring, and the scales are there
    auto* shared_sums = reinterpret_cast<float*>(ring);
    T::StoreSums(sums, shared_sums);
    switch (num_ranks) {
      case 1:
        T::template Finish<1>(p, shared_sums, scales);
        break;
      case 2:
        T::template Finish<2>(p, shared_sums, scales);
        break;
      case 4:
        T::template Finish<4>(p, shared_sums, scales);
        break;
      default:
        T::template Finish<8>(p, shared_sums, scales);
    }
  }
  if (num_ranks > 1) SyncCluster();  // others may still need this block's shared memory
}

struct Launcher {
  const dlk_tile& args;
  cudaStream_t stream;

  Params MakeParams() const {
    return {static_cast<const bf16*>(args.bias),
            static_cast<const bf16*>(args.residual),
            static_cast<bf16*>(args.out),
            args.num_tokens,
            args.n,
            args.k,
            CeilDiv(args.k, kTileK),
            args.stages,
            args.squares,
            args.num_pieces,
            args.eps,
            static_cast<const bf16*>(args.norm_weight),
            static_cast<bf16*>(args.scaled),
            args.out_squares};
  }

  template <int kTokens, int kRows, bool kSwiGlu>
  cudaError_t Run() const {
    using T = Tile<kTokens, kRows, kSwiGlu>;
    const Params p = MakeParams();
    const int ring = std::max(p.num_stages * T::kStageBytes, T::kSumBytes);
    if (ring > kMaxRingBytes || (p.norm_weight != nullptr && !T::kCanPrecedeNorm)) {
      return cudaErrorInvalidValue;
    }
    CUtensorMap weight_map, x_map;  // the weight's is [gates and ups, n, k]
    constexpr int kParts = kSwiGlu ? 2 : 1;
    cudaError_t error =
        EncodeHeads(&weight_map, args.weight, kParts, p.n, p.k, kParts, T::kOutRows);
    if (error != cudaSuccess) return error;
    error = EncodeMatrix(&x_map, args.x, p.num_tokens, p.k, kTokens);
    if (error != cudaSuccess) return error;
    const dim3 grid(CeilDiv(p.num_tokens, kTokens), CeilDiv(p.n, T::kOutRows), args.splits);
    return LaunchClusters(TileLinear<kTokens, kRows, kSwiGlu>, grid, dim3(1, 1, args.splits),
                          T::kThreads, ring + 1024, stream, p, weight_map, x_map);
  }

  template <int kTokens, bool kSwiGlu>
  cudaError_t RunRows() const {
    if (args.rows == 64) return Run<kTokens, 64, kSwiGlu>();
    return args.rows == 192 ? Run<kTokens, 192, kSwiGlu>() : cudaErrorInvalidValue;
  }
  template <bool kSwiGlu>
  cudaError_t RunTokens() const {
    switch (args.tokens) {
      case 32:
        return RunRows<32, kSwiGlu>();
      case 64:
        return RunRows<64, kSwiGlu>();
      case 128:
        return RunRows<128, kSwiGlu>();
      default:
        return cudaErrorInvalidValue;
    }
  }
};

bool IsKnown(const dlk_tile& args) {
  const int splits = args.splits;
  return (splits == 1 || splits == 2 || splits == 4 || splits == 8) && splits * kTileK <= args.k &&
         args.stages >= 2 && args.stages <= kMaxStages && args.num_tokens >= 1 && args.n % 8 == 0 &&
         args.k % kTileK == 0;
}

}  // namespace
}  // namespace dlcore::kernels

int dlk_tile_linear(const dlk_tile* args, cudaStream_t stream) {
  using namespace dlcore::kernels;
  if (!IsKnown(*args)) return cudaErrorInvalidValue;
  const Launcher launcher{*args, stream};
  return args->swiglu ? launcher.RunTokens<true>() : launcher.RunTokens<false>();
}

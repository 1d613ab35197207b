// y = x W^T for some tens to hundreds of tokens: still about the time of reading W once.
//
// A block multiplies 64 or 128 rows of W with 64 or 128 tokens: wgmma's large side are the rows of
// W, so that few tokens waste nothing. One thread brings tiles of 64 values of k through the copy
// engine into a ring of shared memory. W depends on no other kernel: the ring's share of it is
// requested before the previous kernel has ended, and rings are small enough for two blocks on a
// multiprocessor, so in a chain of layers memory is never idle.
//
// Where W has few rows, the blocks of a cluster share k between them and add their sums through
// each other's shared memory. Bias, residual or SwiGLU on the way out.

#include <algorithm>

#include "kernels/cluster.cuh"
#include "kernels/kernels.h"
#include "kernels/tensor_map.cuh"
#include "kernels/wgmma.cuh"

namespace dlcore::kernels {
namespace {

constexpr int kTileK = 64;
constexpr int kRowBytes = kTileK * 2;
constexpr int kMaxStages = 8;
constexpr int kRingBytes = 96 * 1024;  // two blocks fit on a multiprocessor

struct Params {
  const bf16* bias;      // [N] or null
  const bf16* residual;  // [T, N] or null
  bf16* out;             // [T, N]
  int num_tokens, n, num_tiles, num_stages;
};

struct Barriers {
  uint64_t full[kMaxStages], empty[kMaxStages];
};

// The blocks that share a tile of outputs.
__device__ __forceinline__ void SyncRanks(int num_ranks) {
  if (num_ranks > 1) {
    SyncCluster();
  } else {
    __syncthreads();
  }
}

template <int kTokens, int kRows, bool kSwiGlu>
struct Tile {
  static constexpr int kConsumers = kRows * 2;  // a warpgroup for 64 rows
  static constexpr int kThreads = kConsumers + kWarpSize;
  static constexpr int kWeightBytes = kRows * kRowBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kRowBytes;
  static constexpr int kOutRows = kSwiGlu ? kRows / 2 : kRows;
  // Sums of a token lie so that the lanes of a warp store to different banks.
  static constexpr int kPitch = kRows + 4;
  static constexpr int kSumBytes = kTokens * kPitch * 4;

  // SwiGLU: half of the tile's rows are gates, half the ups that belong to them.
  static __device__ void LoadWeights(char* stage, const CUtensorMap* weight, int n, int k,
                                     uint64_t* full) {
    const int row = blockIdx.y * kOutRows;
    CopyBox(stage, weight, row, k, full);
    if (kSwiGlu) CopyBox(stage + kWeightBytes / 2, weight, n + row, k, full);
  }
  static __device__ void LoadTokens(char* stage, const CUtensorMap* x, int k, uint64_t* full) {
    CopyBox(stage + kWeightBytes, x, blockIdx.x * kTokens, k, full);
  }

  // One thread: keeps the ring full.
  static __device__ void Produce(const Params& p, const CUtensorMap* weight, const CUtensorMap* x,
                                 char* ring, Barriers& barriers, int first, int end) {
    const int ahead = min(end - first, p.num_stages);
    for (int i = 0; i < ahead; ++i) {
      ArriveExpecting(&barriers.full[i], kStageBytes);
      LoadWeights(ring + i * kStageBytes, weight, p.n, (first + i) * kTileK, &barriers.full[i]);
    }
    WaitForPrevious();
    for (int i = 0; i < ahead; ++i) {
      LoadTokens(ring + i * kStageBytes, x, (first + i) * kTileK, &barriers.full[i]);
    }
    int stage = 0, parity = 0;
    for (int i = first + ahead; i < end; ++i) {
      uint64_t* full = &barriers.full[stage];
      Wait(&barriers.empty[stage], parity);
      ArriveExpecting(full, kStageBytes);
      LoadWeights(ring + stage * kStageBytes, weight, p.n, i * kTileK, full);
      LoadTokens(ring + stage * kStageBytes, x, i * kTileK, full);
      if (++stage == p.num_stages) stage = 0, parity ^= 1;
    }
  }

  // A warpgroup's 64 rows times all tokens.
  static __device__ void Multiply(float (&sums)[kTokens / 2], const char* ring, Barriers& barriers,
                                  int num_tiles, int num_stages) {
    const int lane = threadIdx.x % kWarpSize;
    const uint32_t rows = SharedAddress(ring) + threadIdx.x / 128 * 64 * kRowBytes;
    int stage = 0, parity = 0, previous = 0;
    for (int i = 0; i < num_tiles; ++i) {
      Wait(&barriers.full[stage], parity);
      const uint64_t a = DescriptorKMajor(rows + stage * kStageBytes);
      const uint64_t b = DescriptorKMajor(SharedAddress(ring) + stage * kStageBytes + kWeightBytes);
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < kTileK / 16; ++step) {
        WgmmaShared(sums, a + step * 2, b + step * 2, 1);
      }
      WgmmaCommit();
      WgmmaWait<1>();
      if (i > 0 && lane == 0) Arrive(&barriers.empty[previous]);
      previous = stage;
      if (++stage == num_stages) stage = 0, parity ^= 1;
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

  // Outputs in fours of a token; block `rank` of the cluster's takes every kRanks-th batch.
  template <int kRanks>
  static __device__ void Finish(const Params& p, const float* shared, int rank) {
    constexpr int kFours = kOutRows / 4;
    constexpr int kBatches = (kTokens * kFours / kConsumers + kRanks - 1) / kRanks;
    uint2 residual[kBatches];
    auto index = [&](int j) {
      const int e = (j * kRanks + rank) * kConsumers + threadIdx.x;
      return int2{e / kFours, e % kFours * 4};  // token and row of the tile
    };
    auto inside = [&](int2 at) {
      return at.x < kTokens && blockIdx.x * kTokens + at.x < p.num_tokens &&
             blockIdx.y * kOutRows + at.y < p.n;
    };
    auto offset = [&](int2 at) {
      return static_cast<int64_t>(blockIdx.x * kTokens + at.x) * p.n + blockIdx.y * kOutRows + at.y;
    };
#pragma unroll
    for (int j = 0; j < kBatches; ++j) {
      const int2 at = index(j);
      residual[j] = make_uint2(0, 0);
      if (p.residual == nullptr || !inside(at)) continue;
      residual[j] = *reinterpret_cast<const uint2*>(p.residual + offset(at));
    }
    SyncRanks(kRanks);
#pragma unroll
    for (int j = 0; j < kBatches; ++j) {
      const int2 at = index(j);
      if (!inside(at)) break;
      float4 v = SumOverCluster<kRanks>(shared + at.x * kPitch + at.y);
      if constexpr (kSwiGlu) {
        const float4 up = SumOverCluster<kRanks>(shared + at.x * kPitch + kOutRows + at.y);
        v = {Silu(v.x) * up.x, Silu(v.y) * up.y, Silu(v.z) * up.z, Silu(v.w) * up.w};
      }
      Add(v, residual[j]);
      if (p.bias != nullptr) {
        Add(v, *reinterpret_cast<const uint2*>(p.bias + blockIdx.y * kOutRows + at.y));
      }
      *reinterpret_cast<uint2*>(p.out + offset(at)) =
          make_uint2(PackBf16(v.x, v.y), PackBf16(v.z, v.w));
    }
  }
  static __device__ void Add(float4& v, uint2 four) {
    const float2 lo = ToFloat2(four.x), hi = ToFloat2(four.y);
    v.x += lo.x, v.y += lo.y, v.z += hi.x, v.w += hi.y;
  }
};

template <int kTokens, int kRows, bool kSwiGlu>
__global__ void __launch_bounds__(kRows * 2 + kWarpSize, 2)
    TileLinear(const Params p, const __grid_constant__ CUtensorMap weight,
               const __grid_constant__ CUtensorMap x) {
  using T = Tile<kTokens, kRows, kSwiGlu>;
  extern __shared__ __align__(1024) char shared_bytes[];
  __shared__ Barriers barriers;
  char* ring =
      reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared_bytes) + 1023) / 1024 * 1024);
  AllowNext();
  if (threadIdx.x == T::kConsumers) {
    for (int i = 0; i < p.num_stages; ++i) {
      InitBarrier(&barriers.full[i], 1);
      InitBarrier(&barriers.empty[i], T::kConsumers / kWarpSize);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  const int rank = blockIdx.z, num_ranks = gridDim.z;
  const int first = p.num_tiles * rank / num_ranks, end = p.num_tiles * (rank + 1) / num_ranks;
  auto* shared_sums = reinterpret_cast<float*>(ring);
  if (threadIdx.x >= T::kConsumers) {
    if (threadIdx.x == T::kConsumers) {
      T::Produce(p, &weight, &x, ring, barriers, first, end);
    }
    __syncwarp();
    __syncthreads();
    SyncRanks(num_ranks);
  } else {
    WaitForPrevious();
    float sums[kTokens / 2] = {};
    T::Multiply(sums, ring, barriers, end - first, p.num_stages);
    __syncthreads();  // both warpgroups are done with the ring
    T::StoreSums(sums, shared_sums);
    switch (num_ranks) {
      case 1:
        T::template Finish<1>(p, shared_sums, rank);
        break;
      case 2:
        T::template Finish<2>(p, shared_sums, rank);
        break;
      case 4:
        T::template Finish<4>(p, shared_sums, rank);
        break;
      default:
        T::template Finish<8>(p, shared_sums, rank);
    }
  }
  if (num_ranks > 1) SyncCluster();  // others may still read this block's sums
}

template <int kTokens, int kRows, bool kSwiGlu>
cudaError_t Run(Params p, const void* x, const void* weight, int k, int splits, int stages,
                cudaStream_t stream) {
  using T = Tile<kTokens, kRows, kSwiGlu>;
  CUtensorMap weight_map, x_map;
  cudaError_t error = EncodeMatrix(&weight_map, weight, kSwiGlu ? 2 * p.n : p.n, k, T::kOutRows);
  if (error != cudaSuccess) return error;
  error = EncodeMatrix(&x_map, x, p.num_tokens, k, kTokens);
  if (error != cudaSuccess) return error;
  p.num_stages = stages > 0 ? stages : kRingBytes / T::kStageBytes;
  const int ring = std::max(p.num_stages * T::kStageBytes, T::kSumBytes);
  const dim3 grid(CeilDiv(p.num_tokens, kTokens), CeilDiv(p.n, T::kOutRows), splits);
  return LaunchClusters(TileLinear<kTokens, kRows, kSwiGlu>, grid, dim3(1, 1, splits), T::kThreads,
                        ring + 1024, stream, p, weight_map, x_map);
}

template <int kTokens, bool kSwiGlu>
cudaError_t RunRows(const Params& p, const void* x, const void* weight, int k, int rows, int splits,
                    int stages, cudaStream_t stream) {
  return rows == 64 ? Run<kTokens, 64, kSwiGlu>(p, x, weight, k, splits, stages, stream)
                    : Run<kTokens, 128, kSwiGlu>(p, x, weight, k, splits, stages, stream);
}

}  // namespace
}  // namespace dlcore::kernels

int dlk_tile_linear(const void* x, const void* weight, const void* bias, const void* residual,
                    void* out, int num_tokens, int n, int k, int swiglu, int tokens, int rows,
                    int splits, int stages, cudaStream_t stream) {
  using namespace dlcore::kernels;
  const bool known = (tokens == 64 || tokens == 128) && (rows == 64 || rows == 128) &&
                     (splits == 1 || splits == 2 || splits == 4 || splits == 8);
  if (!known || num_tokens < 1 || n % 8 != 0 || k % 8 != 0) return cudaErrorInvalidValue;
  Params p{static_cast<const bf16*>(bias),
           static_cast<const bf16*>(residual),
           static_cast<bf16*>(out),
           num_tokens,
           n,
           CeilDiv(k, kTileK),
           0};
  if (p.num_tiles < splits || stages > kMaxStages) return cudaErrorInvalidValue;
  if (tokens == 64) {
    return swiglu ? RunRows<64, true>(p, x, weight, k, rows, splits, stages, stream)
                  : RunRows<64, false>(p, x, weight, k, rows, splits, stages, stream);
  }
  return swiglu ? RunRows<128, true>(p, x, weight, k, rows, splits, stages, stream)
                : RunRows<128, false>(p, x, weight, k, rows, splits, stages, stream);
}

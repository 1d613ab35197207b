// y = x W^T for some tens to hundreds of tokens: still about the time of reading W once.
//
// A block multiplies 64 to 192 rows of W with 32 to 256 tokens: wgmma's first side are the rows of
// W, so that few tokens waste nothing. One thread brings tiles of 64 or 128 values of k through the
// copy engine into a ring of shared memory. W depends on no other kernel: the ring's share of it is
// requested before the previous kernel has ended.
//
// The blocks of a cluster are `sharers` x `splits`. Sharers have rows of their own and the same
// tokens: each brings its part of a tile of x and sends it to all, or L2 would have to deliver x
// once for every block. Splits share k between them, where W has few rows, and add their sums
// through each other's shared memory. Bias, residual or SwiGLU on the way out.

#include <algorithm>

#include "kernels/cluster.cuh"
#include "kernels/kernels.h"
#include "kernels/tensor_map.cuh"
#include "kernels/wgmma.cuh"

namespace dlcore::kernels {
namespace {

constexpr int kBoxColumns = 64;
constexpr int kRowBytes = kBoxColumns * 2;
constexpr int kMaxStages = 16;
constexpr int kRingBytes = 96 * 1024;  // two blocks fit on a multiprocessor
constexpr int kMaxRingBytes = 225 * 1024;

struct Params {
  const bf16* bias;      // [N] or null
  const bf16* residual;  // [T, N] or null
  bf16* out;             // [T, N]
  int num_tokens, n, num_tiles, num_stages;
  int sharers;
};

struct Barriers {
  uint64_t full[kMaxStages], empty[kMaxStages];
};

__device__ __forceinline__ int ClusterSize(const Params& p) { return p.sharers * gridDim.z; }

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
  uint32_t ring, full, empty;  // shared addresses
  uint32_t token_part;         // bytes from a stage's tokens to the part this block brings
  int ranks;                   // who receives that part
};

template <int kTokens, int kRows, int kBoxes, bool kSwiGlu>
struct Tile {
  static constexpr int kConsumers = kRows * 2;  // a warpgroup for 64 rows
  // Four warpgroups of 128 registers a thread, moved to where they are needed.
  static constexpr bool kMovesRegisters = kTokens * kRows > 128 * 256;
  static constexpr int kThreads = kConsumers + (kMovesRegisters ? 128 : kWarpSize);
  static constexpr int kTileK = kBoxes * kBoxColumns;
  static constexpr int kWeightBox = kRows * kRowBytes, kTokenBox = kTokens * kRowBytes;
  static constexpr int kWeightBytes = kBoxes * kWeightBox;
  static constexpr int kStageBytes = kWeightBytes + kBoxes * kTokenBox;
  // SwiGLU: half of the tile's rows are gates, half the ups that belong to them.
  static constexpr int kOutRows = kSwiGlu ? kRows / 2 : kRows;
  // Sums of a token lie so that the lanes of a warp store to different banks.
  static constexpr int kPitch = kRows + 4;
  static constexpr int kSumBytes = kTokens * kPitch * 4;

  static __device__ Source MakeSource(const Params& p, const CUtensorMap* weight,
                                      const CUtensorMap* x, const char* ring, Barriers& barriers) {
    Source s;
    s.weight = weight, s.x = x;
    s.first = p.num_tiles * blockIdx.z / gridDim.z;
    s.end = p.num_tiles * (blockIdx.z + 1) / gridDim.z;
    // Blocks begin at different places of k: all at one, they would want the same lines of x.
    s.next = s.first + (s.end - s.first) * (blockIdx.y / p.sharers) / (gridDim.y / p.sharers);
    const int part = blockIdx.y % p.sharers * (kTokens / p.sharers);
    s.weight_row = blockIdx.y * kOutRows, s.token_row = blockIdx.x * kTokens + part;
    s.ring = SharedAddress(ring);
    s.full = SharedAddress(barriers.full), s.empty = SharedAddress(barriers.empty);
    s.token_part = kWeightBytes + part * kRowBytes;
    s.ranks = ((1 << p.sharers) - 1) << (blockIdx.z * p.sharers);
    return s;
  }
  static __device__ __forceinline__ int NextTile(Source& s) {
    const int tile = s.next;
    s.next = tile + 1 == s.end ? s.first : tile + 1;
    return tile;
  }
  static __device__ __forceinline__ void LoadWeights(const Source& s, int stage, int tile) {
    ArriveExpecting(s.full + stage * 8, kStageBytes);
    CopyColumns(s.ring + stage * kStageBytes, s.weight, s.weight_row, tile * kBoxes,
                s.full + stage * 8);
  }
  // This block's part of the tokens, to all its sharers.
  template <bool kShared>
  static __device__ __forceinline__ void LoadTokens(const Source& s, int stage, int tile) {
    const uint32_t to = s.ring + stage * kStageBytes + s.token_part, full = s.full + stage * 8;
    if constexpr (kShared) {
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        CopyColumnsToRanks(to + box * kTokenBox, s.x, s.token_row, tile * kBoxes + box, full,
                           s.ranks);
      }
    } else {
      CopyColumns(to, s.x, s.token_row, tile * kBoxes, full);
    }
  }

  // One thread: the first tiles of weights, before anything is known of other kernels and blocks.
  static __device__ void ProduceFirst(const Params& p, Source s) {
    const int ahead = min(s.end - s.first, p.num_stages);
#pragma unroll 1
    for (int i = 0; i < ahead; ++i) LoadWeights(s, i, NextTile(s));
  }
  // One thread: keeps the ring full.
  template <bool kShared>
  static __device__ void Produce(const Params& p, Source s) {
    const int ahead = min(s.end - s.first, p.num_stages);
#pragma unroll 1
    for (int i = 0; i < ahead; ++i) LoadTokens<kShared>(s, i, NextTile(s));
    int stage = 0, parity = 0;
#pragma unroll 1
    for (int left = s.end - s.first - ahead; left > 0; --left) {
      const int tile = NextTile(s);
      Wait(s.empty + stage * 8, parity);
      LoadWeights(s, stage, tile);
      LoadTokens<kShared>(s, stage, tile);
      if (++stage == p.num_stages) stage = 0, parity ^= 1;
    }
  }

  // A warpgroup's 64 rows times all tokens.
  static __device__ void Multiply(const Params& p, float (&sums)[kTokens / 2], const char* ring,
                                  Barriers& barriers, int num_tiles) {
    const int lane = threadIdx.x % kWarpSize;
    const uint32_t rows = SharedAddress(ring) + threadIdx.x / 128 * 64 * kRowBytes;
    int stage = 0, parity = 0, previous = 0;
    for (int i = 0; i < num_tiles; ++i) {
      Wait(&barriers.full[stage], parity);
      const uint64_t a = DescriptorKMajor(rows + stage * kStageBytes);
      const uint64_t b = DescriptorKMajor(SharedAddress(ring) + stage * kStageBytes + kWeightBytes);
      WgmmaFence();
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
#pragma unroll
        for (int step = 0; step < kBoxColumns / 16; ++step) {
          MultiplyStep(sums, a + box * (kWeightBox / 16) + step * 2,
                       b + box * (kTokenBox / 16) + step * 2);
        }
      }
      WgmmaCommit();
      WgmmaWait<1>();
      if (i > 0) Release(p, &barriers.empty[previous], lane);
      previous = stage;
      if (++stage == p.num_stages) stage = 0, parity ^= 1;
    }
    WgmmaWait<0>();
  }

  static __device__ void MultiplyStep(float (&sums)[kTokens / 2], uint64_t a, uint64_t b) {
    if constexpr (kMovesRegisters) {  // one for 256 tokens must fit the registers before the move
      constexpr int kHalf = kTokens / 4;
      WgmmaShared(reinterpret_cast<float(&)[kHalf]>(sums[0]), a, b, 1);
      WgmmaShared(reinterpret_cast<float(&)[kHalf]>(sums[kHalf]), a,
                  b + kTokens / 2 * kRowBytes / 16, 1);
    } else {
      WgmmaShared(sums, a, b, 1);
    }
  }
  // A stage is free when all who receive its tokens have read it.
  static __device__ void Release(const Params& p, uint64_t* empty, int lane) {
    if (p.sharers == 1) {
      if (lane == 0) Arrive(empty);
    } else if (lane < p.sharers) {
      ArriveAtRank(empty, blockIdx.z * p.sharers + lane);
    }
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
    SyncClusterIf(kRanks > 1);
    const int sharer = blockIdx.y % p.sharers;
#pragma unroll
    for (int j = 0; j < kBatches; ++j) {
      const int2 at = index(j);
      if (!inside(at)) break;
      float4 v = SumOverRanks<kRanks>(shared + at.x * kPitch + at.y, sharer, p.sharers);
      if constexpr (kSwiGlu) {
        const float4 up =
            SumOverRanks<kRanks>(shared + at.x * kPitch + kOutRows + at.y, sharer, p.sharers);
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

// Blocks on a multiprocessor that registers leave room for.
constexpr int MinBlocks(int tokens, int rows) { return tokens * rows <= 128 * 128 ? 2 : 1; }

template <int kTokens, int kRows, int kBoxes, bool kSwiGlu>
__global__ void __launch_bounds__(Tile<kTokens, kRows, kBoxes, kSwiGlu>::kThreads,
                                  MinBlocks(kTokens, kRows))
    TileLinear(const Params p, const __grid_constant__ CUtensorMap weight,
               const __grid_constant__ CUtensorMap x) {
  using T = Tile<kTokens, kRows, kBoxes, kSwiGlu>;
  extern __shared__ __align__(1024) char shared_bytes[];
  __shared__ Barriers barriers;
  char* ring =
      reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared_bytes) + 1023) / 1024 * 1024);
  AllowNext();
  const int rank = blockIdx.z, num_ranks = gridDim.z;
  const Source source = T::MakeSource(p, &weight, &x, ring, barriers);
  if (threadIdx.x == T::kConsumers) {
    for (int i = 0; i < p.num_stages; ++i) {
      InitBarrier(&barriers.full[i], 1);
      InitBarrier(&barriers.empty[i], T::kConsumers / kWarpSize * p.sharers);
    }
    FenceBarrierInit();
    T::ProduceFirst(p, source);
  }
  __syncwarp();
  SyncClusterIf(ClusterSize(p) > 1);
  auto* shared_sums = reinterpret_cast<float*>(ring);
  WaitForPrevious();
  if (threadIdx.x >= T::kConsumers) {
    if constexpr (T::kMovesRegisters) asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == T::kConsumers) {
      if (p.sharers > 1) {
        T::template Produce<true>(p, source);
      } else {
        T::template Produce<false>(p, source);
      }
    }
    __syncwarp();
    __syncthreads();
    SyncClusterIf(num_ranks > 1);
  } else {
    if constexpr (T::kMovesRegisters) asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
    float sums[kTokens / 2] = {};
    T::Multiply(p, sums, ring, barriers, source.end - source.first);
    __syncthreads();  // all warpgroups are done with the ring
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
  if (ClusterSize(p) > 1) SyncCluster();  // others may still need this block's shared memory
}

struct Launcher {
  Params p;
  const void *x, *weight;
  int k, tokens, rows, boxes, splits, stages;
  cudaStream_t stream;

  template <int kTokens, int kRows, int kBoxes, bool kSwiGlu>
  cudaError_t Run() {
    using T = Tile<kTokens, kRows, kBoxes, kSwiGlu>;
    const bool shared = p.sharers > 1;
    CUtensorMap weight_map, x_map;
    cudaError_t error =
        EncodeColumns(&weight_map, weight, kSwiGlu ? 2 : 1, p.n, k, T::kOutRows, T::kTileK);
    if (error != cudaSuccess) return error;
    error = EncodeColumns(&x_map, x, 1, p.num_tokens, k, kTokens / p.sharers,
                          shared ? kBoxColumns : T::kTileK);
    if (error != cudaSuccess) return error;
    p.num_tiles = CeilDiv(k, T::kTileK);
    p.num_stages = stages > 0 ? stages : std::max(2, kRingBytes / T::kStageBytes);
    const int ring = std::max(p.num_stages * T::kStageBytes, T::kSumBytes);
    if (p.num_stages < 2 || ring > kMaxRingBytes || p.num_tiles < splits) {
      return cudaErrorInvalidValue;
    }
    const int row_blocks = CeilDiv(CeilDiv(p.n, T::kOutRows), p.sharers) * p.sharers;
    const dim3 grid(CeilDiv(p.num_tokens, kTokens), row_blocks, splits);
    return LaunchClusters(TileLinear<kTokens, kRows, kBoxes, kSwiGlu>, grid,
                          dim3(1, p.sharers, splits), T::kThreads, ring + 1024, stream, p,
                          weight_map, x_map);
  }

  template <int kTokens, int kRows, bool kSwiGlu>
  cudaError_t RunBoxes() {
    if constexpr (kTokens <= 64 && kRows <= 128) {
      if (boxes == 2) return Run<kTokens, kRows, 2, kSwiGlu>();
    }
    return boxes == 1 ? Run<kTokens, kRows, 1, kSwiGlu>() : cudaErrorInvalidValue;
  }
  template <int kTokens, bool kSwiGlu>
  cudaError_t RunRows() {
    switch (rows) {
      case 64:
        return RunBoxes<kTokens, 64, kSwiGlu>();
      case 128:
        return RunBoxes<kTokens, 128, kSwiGlu>();
      case 192:
        return RunBoxes<kTokens, 192, kSwiGlu>();
      default:
        return cudaErrorInvalidValue;
    }
  }
  template <bool kSwiGlu>
  cudaError_t RunTokens() {
    switch (tokens) {
      case 32:
        return RunRows<32, kSwiGlu>();
      case 64:
        return RunRows<64, kSwiGlu>();
      case 128:
        return RunRows<128, kSwiGlu>();
      case 256:
        return RunRows<256, kSwiGlu>();
      default:
        return cudaErrorInvalidValue;
    }
  }
};

bool IsPowerOfTwo(int v, int most) { return v >= 1 && v <= most && (v & (v - 1)) == 0; }

}  // namespace
}  // namespace dlcore::kernels

int dlk_tile_linear(const void* x, const void* weight, const void* bias, const void* residual,
                    void* out, int num_tokens, int n, int k, int swiglu, int tokens, int rows,
                    int boxes, int sharers, int splits, int stages, cudaStream_t stream) {
  using namespace dlcore::kernels;
  const bool known = IsPowerOfTwo(sharers, 4) && IsPowerOfTwo(splits, 8) && sharers * splits <= 8 &&
                     stages <= kMaxStages;
  if (!known || num_tokens < 1 || n % 8 != 0 || k % kBoxColumns != 0) return cudaErrorInvalidValue;
  const Params p{static_cast<const bf16*>(bias),
                 static_cast<const bf16*>(residual),
                 static_cast<bf16*>(out),
                 num_tokens,
                 n,
                 0,
                 0,
                 sharers};
  Launcher launcher{p, x, weight, k, tokens, rows, boxes, splits, stages, stream};
  return swiglu ? launcher.RunTokens<true>() : launcher.RunTokens<false>();
}

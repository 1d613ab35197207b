#pragma once

#include "kernels/cluster.cuh"
#include "kernels/tensor_map.cuh"
#include "kernels/wgmma.cuh"

// W x^T for some tens to hundreds of tokens: still about the time of reading W once.
//
// A block multiplies 64 to 192 rows of W with 32 to 256 tokens: wgmma's first side are the rows of
// W, so that few tokens waste nothing. One thread brings tiles of 64 values of k through the copy
// engine into a ring of shared memory. W depends on no other kernel: the ring's share of it is
// requested before the previous kernel has ended.

namespace dlcore::kernels::tile {

inline constexpr int kTileK = 64;
inline constexpr int kRowBytes = kTileK * 2;
inline constexpr int kMaxStages = 16;

struct Barriers {
  uint64_t full[kMaxStages], empty[kMaxStages];
};

// What a block's producer brings, where from and where to.
struct Source {
  const CUtensorMap *weight, *x;
  int first, end, next;  // tiles of k: this block's, in a circle
  int weight_row, token_row;
  char* ring;
  int num_stages;
  Barriers* barriers;
  uint64_t weight_policy;

  __device__ __forceinline__ int NumTiles() const { return end - first; }
  __device__ __forceinline__ int NextTile() {
    const int tile = next;
    next = tile + 1 == end ? first : tile + 1;
    return tile;
  }
};

// RMSNorm of x, whose rows' squares the product that made x left; without them none.
struct Norm {
  const float* squares;  // [num_pieces, T] or null
  int num_pieces;
  float eps;

  // One warp: what the sums of the tokens are multiplied with.
  template <int kTokens>
  __device__ void ComputeScales(int num_tokens, int k, float (&scales)[kTokens]) const {
    constexpr int kEach = kTokens / kWarpSize, kAtOnce = 32 / kEach;
    const int lane = threadIdx.x % kWarpSize, first = blockIdx.x * kTokens + lane;
    float sums[kEach] = {};
#pragma unroll kAtOnce
    for (int piece = 0; piece < (squares != nullptr ? num_pieces : 0); ++piece) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int token = min(first + i * kWarpSize, num_tokens - 1);
        sums[i] += squares[piece * num_tokens + token];
      }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      scales[lane + i * kWarpSize] = squares != nullptr ? rsqrtf(sums[i] / k + eps) : 1.0f;
    }
  }
};

// The ring in a kernel's dynamic shared memory, of which kAlignment bytes are for this.
inline constexpr int kAlignment = 1024;
__device__ __forceinline__ char* AlignedRing(char* shared) {
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared) + kAlignment - 1) /
                                 kAlignment * kAlignment);
}

// All threads of the blocks along z, which share k.
__device__ __forceinline__ void SyncSums() {
  if (gridDim.z > 1) {
    SyncCluster();
  } else {
    __syncthreads();
  }
}

template <int kTokens, int kRows>
struct Product {
  static constexpr int kConsumers = kRows * 2;  // threads: a warpgroup for 64 rows
  static constexpr int kWeightBytes = kRows * kRowBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kRowBytes;
  // Sums of a token lie so that the lanes of a warp store to different banks.
  static constexpr int kPitch = kRows + 4;
  static constexpr int kSumBytes = kTokens * kPitch * 4;
  // Three warpgroups with many sums take registers from a fourth; one instruction may still not
  // use more than a fourth of all.
  static constexpr bool kMovesRegisters = kRows == 192 && kTokens > 128;
  static constexpr int kParts = kMovesRegisters && kTokens == 256 ? 2 : 1;
  // Warps that do not multiply: one brings operands, the others help.
  static constexpr int kHelpers = kMovesRegisters ? 3 : 1;
  static constexpr int kThreads = kConsumers + (1 + kHelpers) * kWarpSize;
  static constexpr int kPartTokens = kTokens / kParts;
  // W is the first to leave L2, but for large tiles, whose steps of k take long: 1.4% slower there.
  static constexpr bool kLeavesL2First = kTokens < 128 || kRows == 64;
  using Sums = float[kParts][kPartTokens / 2];

  static __device__ __forceinline__ void LoadWeights(const Source& s, int stage, int tile) {
    ArriveExpecting(&s.barriers->full[stage], kStageBytes);
    char* to = s.ring + stage * kStageBytes;
    uint64_t* full = &s.barriers->full[stage];
    if constexpr (kLeavesL2First) {
      CopyHeads(to, s.weight, 0, s.weight_row, tile * kTileK, full, s.weight_policy);
    } else {
      CopyHeads(to, s.weight, 0, s.weight_row, tile * kTileK, full);
    }
  }
  static __device__ __forceinline__ void LoadTokens(const Source& s, int stage, int tile) {
    CopyBox(s.ring + stage * kStageBytes + kWeightBytes, s.x, s.token_row, tile * kTileK,
            &s.barriers->full[stage]);
  }

  // One thread: the first tiles of weights, before anything is known of other kernels and blocks.
  static __device__ void ProduceFirst(Source s) {
    for (int i = 0; i < s.num_stages; ++i) {
      InitBarrier(&s.barriers->full[i], 1);
      InitBarrier(&s.barriers->empty[i], kConsumers / kWarpSize);
    }
    FenceBarrierInit();
    const int ahead = min(s.NumTiles(), s.num_stages);
#pragma unroll 1
    for (int i = 0; i < ahead; ++i) LoadWeights(s, i, s.NextTile());
    PrefetchTensorMap(s.x);
  }
  // One thread: keeps the ring full.
  static __device__ void Produce(Source s) {
    const int ahead = min(s.NumTiles(), s.num_stages);
#pragma unroll 1
    for (int i = 0; i < ahead; ++i) LoadTokens(s, i, s.NextTile());
    int stage = 0, parity = 0;
#pragma unroll 1
    for (int left = s.NumTiles() - ahead; left > 0; --left) {
      const int tile = s.NextTile();
      Wait(&s.barriers->empty[stage], parity);
      LoadWeights(s, stage, tile);
      LoadTokens(s, stage, tile);
      if (++stage == s.num_stages) stage = 0, parity ^= 1;
    }
  }

  // A warpgroup's 64 rows times all tokens.
  static __device__ void Multiply(const Source& s, Sums& sums) {
    const bool leads = threadIdx.x % kWarpSize == 0;
    const uint32_t rows = SharedAddress(s.ring) + Uniform(threadIdx.x / 128) * 64 * kRowBytes;
    const uint32_t tokens = SharedAddress(s.ring) + kWeightBytes;
    int stage = 0, parity = 0, previous = 0;
    for (int i = 0; i < s.NumTiles(); ++i) {
      Wait(&s.barriers->full[stage], parity);
      const uint64_t a = DescriptorKMajor(rows + stage * kStageBytes);
      const uint64_t b = DescriptorKMajor(tokens + stage * kStageBytes);
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < kTileK / 16; ++step) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const uint32_t tokens_of_part = part * kPartTokens * kRowBytes;
          WgmmaShared(sums[part], Advance(a, step * 32), Advance(b, tokens_of_part + step * 32), 1);
        }
      }
      WgmmaCommit();
      WgmmaWait<1>();
      if (i > 0 && leads) Arrive(&s.barriers->empty[previous]);
      previous = stage;
      if (++stage == s.num_stages) stage = 0, parity ^= 1;
    }
    WgmmaWait<0>();
  }

  // shared: [kTokens][kPitch]
  static __device__ void StoreSums(const Sums& sums, float* shared) {
    const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
    float* row = shared + threadIdx.x / kWarpSize * 16 + g;
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) {
      const int token = i / 4 * 8 + 2 * t + i % 2;
      row[token * kPitch + i / 2 % 2 * 8] = sums[i / (kPartTokens / 2)][i % (kPartTokens / 2)];
    }
  }

  // All threads of a block. meanwhile(helper) is called by kHelpers warps beside the products, then
  // finish(sums) by the consumers: [kTokens][kPitch] in shared memory, theirs after SyncSums.
  template <class Meanwhile, class Finish>
  static __device__ __forceinline__ void Run(const Source& source, Meanwhile meanwhile,
                                             Finish finish) {
    constexpr int kProducer = kConsumers;  // a thread
    constexpr int kFirstHelper = kConsumers / kWarpSize + 1;
    const int warp = Uniform(threadIdx.x / kWarpSize);
    if (threadIdx.x == kProducer) ProduceFirst(source);
    __syncthreads();
    WaitForPrevious();
    if (warp >= kConsumers / kWarpSize) {
      if constexpr (kMovesRegisters) asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
      if (threadIdx.x == kProducer) Produce(source);
      if (warp >= kFirstHelper) meanwhile(warp - kFirstHelper);
      __syncwarp();
      __syncthreads();
      SyncSums();
    } else {
      if constexpr (kMovesRegisters) asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
      auto* shared = reinterpret_cast<float*>(source.ring);
      {
        Sums sums = {};
        Multiply(source, sums);
        __syncthreads();  // all warpgroups are done with the ring
        StoreSums(sums, shared);
      }
      finish(shared);
    }
    if (gridDim.z > 1) SyncCluster();  // others may still need this block's shared memory
  }
};

}  // namespace dlcore::kernels::tile

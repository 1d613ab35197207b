#pragma once

#include "kernels/common.cuh"

// RMSNorm of a product's tokens within the product, where no kernel before it has summed their
// squares: warps that do not multiply find 1 / rms of a few rows in each block, and tell all other
// blocks, which need them only when their products are done.
//
// No block depends on another: where a row's is late, it is found once more. So blocks need not run
// at the same time.

namespace dlcore::kernels {

struct NormSpace {  // zero between launches
  static constexpr int kMaxTokens = 512, kMaxTiles = kMaxTokens / kWarpSize;
  float scales[kMaxTokens];       // 1 / rms of rows, 0 = not known yet
  unsigned int ended[kMaxTiles];  // blocks of a tile of tokens that have read all of theirs
};

struct SharedNorm {
  const bf16* x;     // [num_tokens, k], k a multiple of 8
  NormSpace* space;  // or null: nothing is normed
  int num_tokens, k;
  float eps;
  int patience;  // looks at a row's scale, some 0.7 us each

  // By kHelpers whole warps of a block, the helper-th of which this is: scales of the block's
  // tokens, blockIdx.x's. Blocks with the same tokens lie along y and z.
  template <int kHelpers, int kTokens>
  __device__ __forceinline__ void Find(float (&found)[kTokens], int helper) const {
    const int first = blockIdx.x * kTokens, end = min(first + kTokens, num_tokens);
    const int stride = NumBlocks() * kHelpers;
    const int own = (blockIdx.y * gridDim.z + blockIdx.z) * kHelpers + helper;
    for (int token = first + own; token < end; token += stride) {
      const float scale = OfRow(token);
      if (Lane() == 0) Tell(token, scale);
    }
    for (int i = helper * kWarpSize; i < kTokens; i += kHelpers * kWarpSize) {
      const int at = i + Lane();
      found[at] = Await(first + at, end);
    }
    SyncHelpers<kHelpers>();
    if (helper == 0) Leave(first, end);
  }

 private:
  static __device__ __forceinline__ int Lane() { return threadIdx.x % kWarpSize; }
  static __device__ __forceinline__ int NumBlocks() { return gridDim.y * gridDim.z; }

  // A warp: 1 / rms of a row.
  __device__ __forceinline__ float OfRow(int token) const {
    const bf16* row = x + static_cast<int64_t>(token) * k;
    float sum = 0;
#pragma unroll 2
    for (int i = Lane() * 8; i < k; i += kWarpSize * 8) {
      float values[8];
      Unpack8(Load16(row + i), values);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum += values[j] * values[j];
    }
    return rsqrtf(WarpSum(sum) / k + eps);
  }
  __device__ __forceinline__ void Tell(int token, float scale) const {
    float* to = space->scales + token;
    asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(to), "f"(scale) : "memory");
  }
  __device__ __forceinline__ float Look(int token) const {
    float scale;
    const float* from = space->scales + token;
    asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(scale) : "l"(from) : "memory");
    return scale;
  }
  // A warp, each lane with a token of its own, or none from `end` on.
  __device__ __forceinline__ float Await(int token, int end) const {
    float scale = 0.0f;
    for (int looks = 0; token < end && scale == 0.0f && looks < patience; ++looks) {
      scale = Look(token);
    }
    __syncwarp();
    unsigned int missing = __ballot_sync(kFullMask, token < end && scale == 0.0f);
    for (; missing != 0; missing &= missing - 1) {
      const int lane = __ffs(missing) - 1;
      const float own = OfRow(__shfl_sync(kFullMask, token, lane));
      if (Lane() == lane) scale = own;
    }
    return scale;
  }
  // The helpers of a block, once each has read its scales.
  template <int kHelpers>
  static __device__ __forceinline__ void SyncHelpers() {
    __threadfence();
    if constexpr (kHelpers > 1) {
      asm volatile("bar.sync 1, %0;" ::"n"(kHelpers * kWarpSize) : "memory");
    } else {
      __syncwarp();
    }
  }
  // A warp: the last block to have read the tokens' scales forgets them.
  __device__ __forceinline__ void Leave(int first, int end) const {
    unsigned int before = 0;
    if (Lane() == 0) before = atomicAdd(space->ended + blockIdx.x, 1);
    if (__shfl_sync(kFullMask, before, 0) != NumBlocks() - 1) return;
    for (int token = first + Lane(); token < end; token += kWarpSize) space->scales[token] = 0.0f;
    if (Lane() == 0) space->ended[blockIdx.x] = 0;
  }
};

}  // namespace dlcore::kernels

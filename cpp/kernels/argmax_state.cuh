#pragma once

#include "kernels/common.cuh"

// An argmax over a row split across blocks: each offers its best as one 64-bit key.

namespace dlcore::kernels {

struct RowState {  // zero between launches
  unsigned long long best;
  unsigned int arrived;
  unsigned int padding;
};

// Orders by value, then by lowest index. NaN never wins over a number; 0 is less than any key.
__device__ __forceinline__ unsigned long long ArgmaxKey(float value, int index) {
  unsigned int bits = __float_as_uint(value);
  bits = value != value ? 0u : (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
  return static_cast<unsigned long long>(bits) << 32 | static_cast<unsigned int>(~index);
}
__device__ __forceinline__ int ArgmaxIndex(unsigned long long key) {
  return key == 0 ? 0 : static_cast<int>(~static_cast<unsigned int>(key));
}

// The largest key, to every lane of each group of `kWidth`.
template <int kWidth = kWarpSize>
__device__ __forceinline__ unsigned long long WarpMax(unsigned long long key) {
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset /= 2) {
    key = max(key, __shfl_xor_sync(kFullMask, key, offset));
  }
  return key;
}

// The block's largest key, to thread 0.
template <int kThreads>
__device__ __forceinline__ unsigned long long BlockMax(unsigned long long key) {
  __shared__ unsigned long long warp_best[kThreads / kWarpSize];
  key = WarpMax(key);
  if (threadIdx.x % kWarpSize == 0) warp_best[threadIdx.x / kWarpSize] = key;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kThreads / kWarpSize; ++w) key = max(key, warp_best[w]);
  __syncthreads();
  return key;
}

// By one thread of each of the row's `num_blocks` blocks. True in the last, with the row's best
// key in `*key`; the state is then clean again.
__device__ __forceinline__ bool MergeArgmax(RowState* state, int num_blocks,
                                            unsigned long long* key) {
  atomicMax(&state->best, *key);
  __threadfence();
  if (atomicAdd(&state->arrived, 1) != static_cast<unsigned>(num_blocks) - 1) return false;
  __threadfence();
  *key = atomicExch(&state->best, 0);
  state->arrived = 0;
  return true;
}

// 8 consecutive logits as float32.
__device__ __forceinline__ void LoadLogits(const bf16* p, float (&v)[8]) { Unpack8(Load16(p), v); }
__device__ __forceinline__ void LoadLogits(const float* p, float (&v)[8]) {
  const float4 a = reinterpret_cast<const float4*>(p)[0];
  const float4 b = reinterpret_cast<const float4*>(p)[1];
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
  v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

}  // namespace dlcore::kernels

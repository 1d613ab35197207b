#pragma once

#include "kernels/prefill_tiles.cuh"
#include "kernels/wgmma.cuh"

// The arithmetic of prefill attention: what a warpgroup does with tiles in shared memory.

namespace dlcore::kernels {

// Weights are relative to a maximum that grows only where they would exceed 2 to the power of this:
// sums need not be rescaled for every maximum that is a little larger.
inline constexpr float kMostOverMax = 8;

// 64 rows of queries. A thread holds two of them, g and g + 8 of its warp's 16.
struct Consumer {
  float s[64], o[64];
  uint32_t weights[8][4];  // P in bf16, as the A operand of 8 products
  float max[2], sum[2], shrink[2];

  __device__ void Start() {
#pragma unroll
    for (int i = 0; i < 64; ++i) o[i] = 0;
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }
  __device__ void MultiplyKeys(const char* q, const char* k) {
    const uint64_t a = DescriptorKMajor(SharedAddress(q));
    const uint64_t b = DescriptorKMajor(SharedAddress(k));
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t step = i / 4 * kColumnBytes + i % 4 * 32;
      WgmmaShared(s, Advance(a, step), Advance(b, step), i > 0);
    }
    WgmmaCommit();
  }
  __device__ void MultiplyValues(const char* v) {
    const uint64_t b = DescriptorMnMajor(SharedAddress(v), kColumnBytes);
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < 8; ++i) WgmmaRegisters(o, weights[i], Advance(b, i * 2048));
    WgmmaCommit();
  }
  // visible[i]: how many of the tile's tokens row i sees.
  __device__ void Mask(const int (&visible)[2]) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      const int token = (i / 4) * 8 + 2 * t + i % 2;
      if (token >= visible[i / 2 % 2]) s[i] = -INFINITY;
    }
  }
  __device__ void Softmax(float scale) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      // Four running values each: one would be a chain of 32 dependent operations.
      float m[4];
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const float larger = fmaxf(s[4 * j + 2 * row], s[4 * j + 2 * row + 1]);
        m[j % 4] = j < 4 ? larger : fmaxf(m[j % 4], larger);
      }
      float largest = fmaxf(fmaxf(m[0], m[1]), fmaxf(m[2], m[3]));
      largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, 2));
      const bool grows = (largest - max[row]) * scale > kMostOverMax;  // false for NaN, -inf - -inf
      const float before = max[row];
      max[row] = grows ? largest : before;
      const float offset = max[row] == -INFINITY ? 0.0f : max[row] * scale;
      shrink[row] = grows ? Exp2(before * scale - offset) : 1.0f;
      float total[4];
#pragma unroll
      for (int j = 0; j < 16; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& x = s[4 * j + 2 * row + c];
          x = Exp2(x * scale - offset);
          total[j % 2 * 2 + c] = j < 2 ? x : total[j % 2 * 2 + c] + x;
        }
      }
      sum[row] = sum[row] * shrink[row] + ((total[0] + total[1]) + (total[2] + total[3]));
    }
  }
  // Products queued before the softmax should run beside it: the wait for them belongs behind it.
  // The compiler would wait at once; what keeps it is a store of what the softmax has found.
  __device__ void MarkSoftmax(float* mark) const {
    if (threadIdx.x % kWarpSize == 0) *static_cast<volatile float*>(mark) = sum[0] + sum[1];
  }
  __device__ void PackWeights() {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) weights[i][j] = PackBf16(s[8 * i + 2 * j], s[8 * i + 2 * j + 1]);
    }
  }
  // Rarely does any of a warp's rows.
  __device__ void Shrink() {
    if (__all_sync(kFullMask, shrink[0] == 1.0f && shrink[1] == 1.0f)) return;
#pragma unroll
    for (int i = 0; i < 64; ++i) o[i] *= shrink[i / 2 % 2];
  }
};

}  // namespace dlcore::kernels

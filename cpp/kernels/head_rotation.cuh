#pragma once

#include "kernels/common.cuh"
#include "kernels/kernels.h"

// RMSNorm and rotation of q and k heads, and how the paged cache keeps k and v: for the kernel that
// does only this and for decode attention, whose lanes hold other parts of a head. Every product
// and sum is rounded in the same order in both, so their results are the same bit for bit.

namespace dlcore::kernels {

__device__ __forceinline__ void NormScale(float (&v)[8], float inverse_rms, uint4 weight) {
  float w[8];
  Unpack8(weight, w);
#pragma unroll
  for (int j = 0; j < 8; ++j) v[j] = __fmul_rn(v[j], __fmul_rn(inverse_rms, w[j]));
}

// partner: the value half a head away; negative for one of the lower half.
__device__ __forceinline__ float Rotated(float v, float partner, float cosine, float sine) {
  return __fmaf_rn(v, cosine, __fmul_rn(partner, sine));
}

__device__ __forceinline__ void LoadFloats(const float* p, float (&v)[8]) {
  const auto* fours = reinterpret_cast<const float4*>(p);
  const float4 a = fours[0], b = fours[1];
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
  v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

// D / 8 lanes hold one head, 8 values each: v's rotation partners are in the lane D / 16 away.
template <int kHeadDim>
__device__ __forceinline__ void NormLanes(float (&v)[8], uint4 weight, float eps) {
  const float sum = WarpSum<kHeadDim / 8>(SumSquares(v));
  NormScale(v, rsqrtf(sum / kHeadDim + eps), weight);
}
template <int kHeadDim>
__device__ __forceinline__ void RotateLanes(float (&v)[8], const float* cosines, const float* sines,
                                            int lane) {
  constexpr int kHalfLanes = kHeadDim / 16;
  const float sign = lane < kHalfLanes ? -1.0f : 1.0f;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float partner = __shfl_xor_sync(kFullMask, v[j], kHalfLanes);
    v[j] = Rotated(v[j], sign * partner, cosines[j], sines[j]);
  }
}

// q and k are both normed, or neither.
inline bool NormsBothOrNone(const dlk_new_tokens& tokens) {
  return (tokens.q_weight == nullptr) == (tokens.k_weight == nullptr);
}

// Where the heads of new tokens go: q on, k and v to the paged cache.
struct HeadOutputs {
  bf16* q;  // [T, Hq, D]
  void* kv_cache;
  const float* kv_scales;
  int num_q_heads, num_kv_heads, block_size;

  __host__ __device__ __forceinline__ int NumHeads() const {
    return num_q_heads + 2 * num_kv_heads;
  }
  __device__ __forceinline__ bool IsQuery(int head) const { return head < num_q_heads; }
  __device__ __forceinline__ bool IsValue(int head) const {
    return head >= num_q_heads + num_kv_heads;
  }
  // A lane's 8 values of a head; slot -1: k and v are not kept.
  template <int kHeadDim, class Cache>
  __device__ __forceinline__ void Store(int token, int head, int slot, int lane,
                                        const float (&v)[8]) const;
};

__device__ __forceinline__ void StoreCache(bf16* p, const float (&v)[8], float) {
  Store16(p, Pack8(v));
}
__device__ __forceinline__ void StoreCache(fp8* p, const float (&v)[8], float inverse_scale) {
  __nv_fp8x2_storage_t pairs[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    pairs[j] = __nv_cvt_float2_to_fp8x2(
        make_float2(v[2 * j] * inverse_scale, v[2 * j + 1] * inverse_scale), __NV_SATFINITE,
        __NV_E4M3);
  }
  *reinterpret_cast<uint2*>(p) = *reinterpret_cast<const uint2*>(pairs);
}

template <int kHeadDim, class Cache>
__device__ __forceinline__ void HeadOutputs::Store(int token, int head, int slot, int lane,
                                                   const float (&v)[8]) const {
  if (IsQuery(head)) {
    Store16(q + (static_cast<int64_t>(token) * num_q_heads + head) * kHeadDim + lane * 8, Pack8(v));
    return;
  }
  if (slot < 0) return;
  const int is_v = IsValue(head), kv_head = (head - num_q_heads) % num_kv_heads;
  const int64_t block = slot / block_size, offset = slot % block_size;
  Cache* out = static_cast<Cache*>(kv_cache) +
               (((block * 2 + is_v) * num_kv_heads + kv_head) * block_size + offset) * kHeadDim;
  const float inverse_scale =
      kv_scales != nullptr ? 1.0f / kv_scales[is_v * num_kv_heads + kv_head] : 1.0f;
  StoreCache(out + lane * 8, v, inverse_scale);
}

}  // namespace dlcore::kernels

#pragma once

#include "kernels/common.cuh"

// RMSNorm and rotation of q and k heads, and how the paged cache keeps k and v: for the kernel that
// does only this and for decode attention, whose lanes hold other parts of a head. Every product
// and sum is rounded in the same order in both, so their results are the same bit for bit.

namespace dlcore::kernels {

__device__ __forceinline__ float SumSquares(const float (&v)[8]) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) sum = __fmaf_rn(v[j], v[j], sum);
  return sum;
}

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

}  // namespace dlcore::kernels

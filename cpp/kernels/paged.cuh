#pragma once

#include "kernels/common.cuh"

// Reading the paged cache: 8 consecutive values of one token's head as 16-bit tensor-core
// operands. A bf16 cache is multiplied as it is; an E4M3 cache becomes half, exactly.

namespace dlcore::kernels {

template <class Cache>
struct CacheTraits;

template <>
struct CacheTraits<bf16> {
  using Element = bf16;  // what the tensor cores multiply
  using Raw = uint4;     // 8 values as they lie in memory
  __device__ static uint4 Convert(Raw v) { return v; }
  __device__ static uint4 ConvertQuery(uint4 v) { return v; }
  __device__ static uint32_t Pack(float lo, float hi) { return PackBf16(lo, hi); }
};

template <>
struct CacheTraits<fp8> {
  using Element = __half;
  using Raw = uint2;
  __device__ static uint32_t Widen(uint32_t pair) {
    const __half2_raw h =
        __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair), __NV_E4M3);
    return static_cast<uint32_t>(h.x) | static_cast<uint32_t>(h.y) << 16;
  }
  __device__ static uint4 Convert(Raw v) {
    return make_uint4(Widen(v.x & 0xffff), Widen(v.x >> 16), Widen(v.y & 0xffff), Widen(v.y >> 16));
  }
  __device__ static uint32_t Pack(float lo, float hi) {
    const __half2 h = __floats2half2_rn(lo, hi);
    return *reinterpret_cast<const uint32_t*>(&h);
  }
  __device__ static uint4 ConvertQuery(uint4 v) {
    float f[8];
    Unpack8(v, f);
    return make_uint4(Pack(f[0], f[1]), Pack(f[2], f[3]), Pack(f[4], f[5]), Pack(f[6], f[7]));
  }
};

// Exactly.
__device__ __forceinline__ uint4 E4m3ToBf16(uint2 v) {
  auto pair = [](uint32_t halves) {
    const float2 f = __half22float2(*reinterpret_cast<const __half2*>(&halves));
    return PackBf16(f.x, f.y);
  };
  const uint4 h = CacheTraits<fp8>::Convert(v);
  return make_uint4(pair(h.x), pair(h.y), pair(h.z), pair(h.w));
}

// Volatile, so that a tile's loads all leave before its first product waits for one of them.
template <class Raw>
__device__ __forceinline__ Raw LoadCache(const void* p);
template <>
__device__ __forceinline__ uint4 LoadCache<uint4>(const void* p) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
template <>
__device__ __forceinline__ uint2 LoadCache<uint2>(const void* p) {
  uint2 v;
  asm volatile("ld.global.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}

// The same by a policy: EvictFirst.
template <class Raw>
__device__ __forceinline__ Raw LoadCache(const void* p, uint64_t policy);
template <>
__device__ __forceinline__ uint4 LoadCache<uint4>(const void* p, uint64_t policy) {
  uint4 v;
  asm volatile("ld.global.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], %5;"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p), "l"(policy));
  return v;
}
template <>
__device__ __forceinline__ uint2 LoadCache<uint2>(const void* p, uint64_t policy) {
  uint2 v;
  asm volatile("ld.global.L2::cache_hint.v2.u32 {%0,%1}, [%2], %3;"
               : "=r"(v.x), "=r"(v.y)
               : "l"(p), "l"(policy));
  return v;
}

}  // namespace dlcore::kernels

#pragma once

#include "kernels/prefill_consumer.cuh"

// How the parts of a tile of work whose keys blocks share become one.

namespace dlcore::kernels {

__device__ __forceinline__ void WarpgroupBarrier(int warpgroup) {
  asm volatile("bar.sync %0, 128;" ::"r"(4 + warpgroup) : "memory");
}

// Whether this warpgroup is the last to end with a part of its tile of work: then c is what all
// parts have found, added up in their order. `arrived`: in shared memory.
__device__ inline bool MergeParts(const PrefillParams& p, const Work& work, float scale,
                                  int& arrived, Consumer& c) {
  const int warpgroup = Uniform(threadIdx.x / 128), thread = threadIdx.x % 128;
  auto vectors_of = [&](int part) {
    const int slot = work.slot + part * p.a.num_kv_heads;
    return &p.workspace->parts[slot][warpgroup][0][thread];
  };
  constexpr int kVectors = PrefillWorkspace::kVectors, kStride = PrefillWorkspace::kThreads;
  float4* own = vectors_of(work.part);
#pragma unroll
  for (int i = 0; i < kVectors - 1; ++i) {
    __stcg(own + i * kStride, *reinterpret_cast<float4*>(c.o + 4 * i));
  }
  __stcg(own + (kVectors - 1) * kStride, make_float4(c.max[0], c.max[1], c.sum[0], c.sum[1]));
  __threadfence();
  WarpgroupBarrier(warpgroup);
  int* counter = &p.workspace->arrived[work.slot][warpgroup];
  if (thread == 0) {
    arrived = atomicAdd(counter, 1) + 1;
    if (arrived == work.num_parts) *counter = 0;
  }
  WarpgroupBarrier(warpgroup);
  if (Uniform(arrived) != work.num_parts) return false;
  __threadfence();

  c.Start();
  for (int part = 0; part < work.num_parts; ++part) {
    const float4* vectors = vectors_of(part);
    const float4 state = __ldcg(vectors + (kVectors - 1) * kStride);
    const float max[2] = {state.x, state.y}, sum[2] = {state.z, state.w};
    float keep[2], add[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float largest = fmaxf(c.max[row], max[row]);
      const float offset = largest == -INFINITY ? 0.0f : largest * scale;
      keep[row] = Exp2(c.max[row] * scale - offset);
      add[row] = Exp2(max[row] * scale - offset);
      c.max[row] = largest;
      c.sum[row] = c.sum[row] * keep[row] + sum[row] * add[row];
    }
#pragma unroll
    for (int i = 0; i < kVectors - 1; ++i) {
      const float4 o = __ldcg(vectors + i * kStride);
      c.o[4 * i] = c.o[4 * i] * keep[0] + o.x * add[0];
      c.o[4 * i + 1] = c.o[4 * i + 1] * keep[0] + o.y * add[0];
      c.o[4 * i + 2] = c.o[4 * i + 2] * keep[1] + o.z * add[1];
      c.o[4 * i + 3] = c.o[4 * i + 3] * keep[1] + o.w * add[1];
    }
  }
  return true;
}

}  // namespace dlcore::kernels

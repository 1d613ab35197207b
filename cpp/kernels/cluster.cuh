#pragma once

#include "kernels/barrier.cuh"

// Blocks of one cluster: they meet, and read each other's shared memory.

namespace dlcore::kernels {

// All threads of all blocks of the cluster; what they wrote to shared memory is seen after it.
__device__ __forceinline__ void SyncCluster() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
}

// This block's number in its cluster.
__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %cluster_ctarank;" : "=r"(rank));
  return rank;
}
// The address of this place in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ uint32_t AddressInBlock(const void* shared, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(SharedAddress(shared)), "r"(rank));
  return address;
}
// At a barrier by its address in the cluster. It orders nothing but this block's own accesses: a
// release to the cluster would wait for all of them to reach memory.
__device__ __forceinline__ void ArriveInCluster(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// The sum, over the cluster's kRanks blocks, of the values at this place of their shared memory.
template <int kRanks>
__device__ __forceinline__ float4 SumOverCluster(const float* shared) {
  if constexpr (kRanks == 1) {
    return *reinterpret_cast<const float4*>(shared);
  } else {
    float4 values[kRanks];  // all requested before the first is needed
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) {
      const uint32_t address = AddressInBlock(shared, rank);
      float4& v = values[rank];
      asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                   : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                   : "r"(address));
    }
    float4 sum = values[0];
#pragma unroll
    for (int rank = 1; rank < kRanks; ++rank) {
      const float4 v = values[rank];
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    return sum;
  }
}

}  // namespace dlcore::kernels

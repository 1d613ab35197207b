#pragma once

#include "kernels/kernels.h"
#include "kernels/prefill_workspace.cuh"

// Decode attention waits for memory, prefill attention for the tensor cores: in a mixed step they
// run beside each other. Decode attention takes some of the multiprocessors and lets the next
// kernel in at once; prefill attention's blocks find room on the others, then wherever one of
// decode attention's is done. They do not wait for the kernel before them, but until decode
// attention tells that q and the cache are there. The last of them to end waits for decode
// attention, on behalf of the kernels that follow.

namespace dlcore::kernels {

// Multiprocessors of decode attention where it streams (decode_stream.cu) beside prefill attention.
inline constexpr int kBesidePrefill = 88;

// beside: the counters of the prefill attention that is launched next, or null.
int RunDecodeAttention(const dlk_attention& a, const dlk_new_tokens& tokens,
                       PrefillCounters* beside, cudaStream_t stream);
// beside_decode: a decode attention was launched just before that has this workspace's counters.
int RunPrefillAttention(const dlk_attention& a, PrefillWorkspace* workspace, int min_query,
                        bool beside_decode, cudaStream_t stream);

// By one thread of decode attention's first block, after it has waited.
__device__ __forceinline__ void TellReady(PrefillCounters* counters, const void* cache) {
  asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(&counters->ready), "l"(cache)
               : "memory");
}

// By a warp of prefill attention that has the copy engine read q and the cache.
__device__ __forceinline__ void PollReady(const PrefillCounters* counters, const void* cache) {
  if (threadIdx.x % kWarpSize == 0) {
    const void* ready;
    do {
      asm volatile("ld.acquire.gpu.global.u64 %0, [%1];"
                   : "=l"(ready)
                   : "l"(&counters->ready)
                   : "memory");
    } while (ready != cache);
  }
  __syncwarp();
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

}  // namespace dlcore::kernels

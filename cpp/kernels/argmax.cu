// Greedy sampling: one pass over the logits, split across blocks. Each block offers its best as
// one 64-bit key; the row's last block to arrive writes the token and resets the workspace.

#include <algorithm>

#include "kernels/common.cuh"
#include "kernels/kernels.h"

namespace dlcore::kernels {
namespace {

constexpr int kThreads = 256;

struct RowState {  // zero between launches
  unsigned long long best;
  unsigned int arrived;
  unsigned int padding;
};

// Orders by value, then by lowest index. NaN never wins over a number.
__device__ __forceinline__ unsigned long long Key(float value, int index) {
  unsigned int bits = __float_as_uint(value);
  bits = value != value ? 0u : (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
  return static_cast<unsigned long long>(bits) << 32 | static_cast<unsigned int>(~index);
}

template <class Logit>
__device__ __forceinline__ void Load8(const Logit* p, float (&v)[8]) {
  if constexpr (sizeof(Logit) == 2) {
    Unpack8(Load16(p), v);
  } else {
    const float4 a = reinterpret_cast<const float4*>(p)[0];
    const float4 b = reinterpret_cast<const float4*>(p)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  }
}

template <class Logit>
__global__ void __launch_bounds__(kThreads)
    Argmax(const Logit* logits, const int32_t* row_slots, int32_t* sampled, int32_t* last_tokens,
           RowState* states, int vocab) {
  __shared__ unsigned long long warp_best[kThreads / kWarpSize];
  AllowNext();
  WaitForPrevious();
  const int row = blockIdx.y;
  const int slot = row_slots[row];
  if (slot < 0) {
    if (blockIdx.x == 0 && threadIdx.x == 0) sampled[row] = -1;
    return;
  }
  const Logit* p = logits + static_cast<int64_t>(row) * vocab;
  float best_value = -INFINITY;
  int best_index = 0x7fffffff;
  const int stride = gridDim.x * kThreads * 8;
#pragma unroll 4
  for (int i = (blockIdx.x * kThreads + threadIdx.x) * 8; i < vocab; i += stride) {
    float v[8];
    Load8(p + i, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (v[j] > best_value) best_value = v[j], best_index = i + j;
    }
  }
  unsigned long long best = best_index == 0x7fffffff ? 0 : Key(best_value, best_index);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    best = max(best, __shfl_xor_sync(kFullMask, best, offset));
  }
  if (threadIdx.x % kWarpSize == 0) warp_best[threadIdx.x / kWarpSize] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int w = 1; w < kThreads / kWarpSize; ++w) best = max(best, warp_best[w]);
  RowState* state = states + row;
  atomicMax(&state->best, best);
  __threadfence();
  if (atomicAdd(&state->arrived, 1) != gridDim.x - 1) return;
  __threadfence();
  best = atomicExch(&state->best, 0);
  state->arrived = 0;
  // All logits NaN or -inf: token 0, deterministically.
  const int token = best == 0 ? 0 : static_cast<int>(~static_cast<unsigned int>(best));
  sampled[row] = token;
  last_tokens[slot] = token;
}

}  // namespace
}  // namespace dlcore::kernels

int dlk_argmax(const void* logits, int logits_are_bf16, const int32_t* row_slots,
               int32_t* sampled, int32_t* last_tokens, void* workspace, int num_rows, int vocab,
               cudaStream_t stream) {
  using namespace dlcore::kernels;
  if (vocab % 8 != 0) return cudaErrorInvalidValue;
  if (num_rows == 0) return cudaSuccess;
  // About two waves of blocks in all, and no block without work.
  const int splits = std::clamp(512 / num_rows, 1, CeilDiv(vocab, kThreads * 8));
  const dim3 grid(splits, num_rows);
  auto* states = static_cast<RowState*>(workspace);
  if (logits_are_bf16) {
    return Launch(Argmax<bf16>, grid, kThreads, 0, stream, static_cast<const bf16*>(logits),
                  row_slots, sampled, last_tokens, states, vocab);
  }
  return Launch(Argmax<float>, grid, kThreads, 0, stream, static_cast<const float*>(logits),
                row_slots, sampled, last_tokens, states, vocab);
}

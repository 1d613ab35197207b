// Greedy sampling: one pass over the logits, split across blocks. Each block offers its best as
// one 64-bit key; the row's last block to arrive writes the token. A row of NaN gets token 0.

#include <algorithm>

#include "kernels/argmax_state.cuh"
#include "kernels/kernels.h"

namespace dlcore::kernels {
namespace {

constexpr int kThreads = 256;

template <class Logit>
__global__ void __launch_bounds__(kThreads)
    Argmax(const Logit* logits, const int32_t* row_slots, int32_t* sampled, int32_t* last_tokens,
           RowState* states, int vocab) {
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
    LoadLogits(p + i, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (v[j] > best_value) best_value = v[j], best_index = i + j;
    }
  }
  unsigned long long key = best_index == 0x7fffffff ? 0 : ArgmaxKey(best_value, best_index);
  key = BlockMax<kThreads>(key);
  if (threadIdx.x != 0 || !MergeArgmax(states + row, gridDim.x, &key)) return;
  const int token = ArgmaxIndex(key);
  sampled[row] = token;
  last_tokens[slot] = token;
}

}  // namespace
}  // namespace dlcore::kernels

int dlk_argmax(const void* logits, int logits_are_bf16, const int32_t* row_slots, int32_t* sampled,
               int32_t* last_tokens, void* workspace, int num_rows, int vocab,
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

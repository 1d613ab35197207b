// The first kernel of a step: the arena's changes reach the block tables, and tokens that only
// the device knows yet reach the embedding.

#include <algorithm>

#include "kernels/common.cuh"
#include "kernels/kernels.h"

namespace dlcore::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 64;
// Indices into the header: see dlcore/step_layout.h.
constexpr int kNumBlockUpdates = 3;
constexpr int kBlockUpdatesOffset = 9;

__global__ void __launch_bounds__(kThreads)
    BeginStep(const int32_t* arena, const int32_t* header, const int32_t* token_ids,
              const int32_t* token_seq, const int32_t* seq_slots, const int32_t* last_tokens,
              int32_t* block_tables, int64_t* token_ids_out, int num_tokens, int num_seqs) {
  WaitForPrevious();
  const int thread = blockIdx.x * kThreads + threadIdx.x;
  const int num_threads = gridDim.x * kThreads;
  const int num_updates = header[kNumBlockUpdates];
  const auto* updates = reinterpret_cast<const int2*>(arena + header[kBlockUpdatesOffset]);
  for (int i = thread; i < num_updates; i += num_threads) {
    const int2 update = updates[i];
    block_tables[update.x] = update.y;
  }
  for (int i = thread; i < num_tokens; i += num_threads) {
    int token = token_ids[i];
    const int seq = token_seq[i];
    if (token < 0 && seq >= 0 && seq < num_seqs) {
      const int slot = seq_slots[seq];
      if (slot >= 0) token = last_tokens[slot];
    }
    token_ids_out[i] = max(token, 0);
  }
  // Late: attention reads block tables before its own wait, so they must be there by then.
  __threadfence();
  AllowNext();
}

}  // namespace
}  // namespace dlcore::kernels

int dlk_begin_step(const int32_t* arena, const int32_t* header, const int32_t* token_ids,
                   const int32_t* token_seq, const int32_t* seq_slots, const int32_t* last_tokens,
                   int32_t* block_tables, int64_t* token_ids_out, int num_tokens, int num_seqs,
                   cudaStream_t stream) {
  using namespace dlcore::kernels;
  // A prefill step may bring as many updates as a 128k prompt has blocks: size the grid for tokens
  // and let the loop take the rest.
  const int blocks = std::min(kMaxBlocks, CeilDiv(std::max(num_tokens, num_seqs), kThreads));
  return Launch(BeginStep, blocks, kThreads, 0, stream, arena, header, token_ids, token_seq,
                seq_slots, last_tokens, block_tables, token_ids_out, num_tokens, num_seqs);
}

#include "kernels/mixed_attention.cuh"

int dlk_mixed_attention(const dlk_attention* args, void* prefill_workspace, cudaStream_t stream) {
  using namespace dlcore::kernels;
  if (args->query_start_loc == nullptr || args->head_dim != 128) return cudaErrorInvalidValue;
  if (args->num_seqs == 0 || args->num_tokens == 0) return cudaSuccess;
  auto* workspace = static_cast<PrefillWorkspace*>(prefill_workspace);
  const int error = RunDecodeAttention(*args, {}, &workspace->counters, stream);
  if (error != cudaSuccess) return error;
  return RunPrefillAttention(*args, workspace, 1, true, stream);
}

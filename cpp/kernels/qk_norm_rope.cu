// q/k norm, rotation and the write of k and v to the paged cache, one pass over qkv.
//
// qkv may be the product of a stream that was to be RMS-normalised first: then a block has a token,
// and multiplies what it reads with 1 / rms of the token's row of the stream.

#include "kernels/decode_schedule.cuh"
#include "kernels/head_rotation.cuh"

namespace dlcore::kernels {
namespace {

constexpr int kThreads = 128;
constexpr unsigned kFewBlocks = 4 * kMultiprocessors, kMaxTurns = 4;
constexpr int kTokenThreads = 256;  // where a block has a token

struct Params {
  dlk_new_tokens tokens;
  HeadOutputs out;
  int num_tokens;
  const bf16* stream;  // [T, stream_dim] or null
  int stream_dim;
  float stream_eps;
};

template <int kHeadDim>
__device__ __forceinline__ uint4 LoadHead(const Params& p, int token, int head, int lane) {
  const int64_t row = static_cast<int64_t>(token) * p.out.NumHeads() + head;
  return Load16(static_cast<const bf16*>(p.tokens.qkv) + row * kHeadDim + lane * 8);
}

// One head of one token; a lane's 8 values of it, times `scale`.
template <int kHeadDim, class Cache>
__device__ __forceinline__ void Process(const Params& p, int token, int head, int lane, bool valid,
                                        int position, int slot, uint4 values, float scale) {
  float v[8];
  Unpack8(values, v);
#pragma unroll
  for (int j = 0; j < 8; ++j) v[j] *= scale;
  // Norm and rotation shuffle, so every lane takes part; v heads drop the result.
  float rotated[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) rotated[j] = v[j];
  if (p.tokens.q_weight != nullptr) {
    const void* weights = p.out.IsQuery(head) ? p.tokens.q_weight : p.tokens.k_weight;
    const auto* weight = static_cast<const bf16*>(weights);
    NormLanes<kHeadDim>(rotated, Load16(weight + lane * 8), p.tokens.eps);
  }
  const float* cosines =
      p.tokens.cos_sin + static_cast<int64_t>(position) * kHeadDim + lane % (kHeadDim / 16) * 8;
  RotateLanes<kHeadDim>(rotated, cosines, cosines + kHeadDim / 2, lane);
  if (!valid) return;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    if (!p.out.IsValue(head)) v[j] = rotated[j];
  }
  p.out.Store<kHeadDim, Cache>(token, head, slot, lane, v);
}

// kLooped: a block has several turns.
template <int kHeadDim, class Cache, bool kLooped>
__global__ void __launch_bounds__(kThreads, sizeof(Cache) == 2 ? 16 : 0)
    QkNormRopeKvWrite(const Params p) {
  constexpr int kLanes = kHeadDim / 8, kHeads = kThreads / kLanes;  // of a block
  AllowNext();
  const int num_heads = p.out.NumHeads();
  const int64_t last = static_cast<int64_t>(p.num_tokens) * num_heads - 1;
  const int lane = threadIdx.x % kLanes;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kHeads;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kHeads; first <= last; first += stride) {
    const int64_t item = first + threadIdx.x / kLanes;
    const bool valid = item <= last;  // all lanes stay, for the shuffles
    const int64_t safe = valid ? item : last;
    const int token = static_cast<int>(safe / num_heads), head = static_cast<int>(safe % num_heads);
    WaitForPrevious();
    const int position = p.tokens.positions[token], slot = p.tokens.slot_mapping[token];
    const uint4 values = LoadHead<kHeadDim>(p, token, head, lane);
    Process<kHeadDim, Cache>(p, token, head, lane, valid, position, slot, values, 1.0f);
    if (!kLooped) break;
  }
}

// What all threads need of their token waits in shared memory: few registers leave attention room.
template <int kHeadDim, class Cache>
__global__ void __launch_bounds__(kTokenThreads, sizeof(Cache) == 2 ? 8 : 6)
    ScaledQkNormRopeKvWrite(const Params p) {
  constexpr int kLanes = kHeadDim / 8, kHeads = kTokenThreads / kLanes;  // at a time
  __shared__ float scratch[kWarpSize], scale;
  __shared__ int position, slot;
  AllowNext();
  const int lane = threadIdx.x % kLanes, first = threadIdx.x / kLanes;
  const int token = blockIdx.x, last = p.out.NumHeads() - 1;
  WaitForPrevious();
  uint4 values = LoadHead<kHeadDim>(p, token, min(first, last), lane);
  if (threadIdx.x == 0) {
    position = p.tokens.positions[token];
    slot = p.tokens.slot_mapping[token];
  }
  const bf16* row = p.stream + static_cast<int64_t>(token) * p.stream_dim;
  const float inverse_rms = InverseRms(row, p.stream_dim, p.stream_eps, scratch);
  if (threadIdx.x == 0) scale = inverse_rms;
  __syncthreads();
#pragma unroll 1
  for (int head = first;; head += kHeads) {
    Process<kHeadDim, Cache>(p, token, min(head, last), lane, head <= last, position, slot, values,
                             scale);
    if (head - first + kHeads > last) return;  // all lanes stay together, for the shuffles
    values = LoadHead<kHeadDim>(p, token, min(head + kHeads, last), lane);
  }
}

template <int kHeadDim, class Cache>
cudaError_t RunCache(const Params& p, cudaStream_t stream) {
  const int64_t lanes = static_cast<int64_t>(p.num_tokens) * p.out.NumHeads() * (kHeadDim / 8);
  const auto blocks = static_cast<unsigned>((lanes + kThreads - 1) / kThreads);
  const bool streams = StreamPays(p.num_tokens, p.out.num_kv_heads, kHeadDim * sizeof(Cache));
  const LaunchOptions options{dim3(1), streams};
  if (p.stream != nullptr) {
    return LaunchWith(options, ScaledQkNormRopeKvWrite<kHeadDim, Cache>, p.num_tokens,
                      kTokenThreads, 0, stream, p);
  }
  // Few blocks leave those of decode attention the registers to begin at once.
  if (streams && blocks > kFewBlocks && blocks <= kMaxTurns * kFewBlocks) {
    return LaunchWith(options, QkNormRopeKvWrite<kHeadDim, Cache, true>, kFewBlocks, kThreads, 0,
                      stream, p);
  }
  return LaunchWith(options, QkNormRopeKvWrite<kHeadDim, Cache, false>, blocks, kThreads, 0, stream,
                    p);
}

template <int kHeadDim>
cudaError_t Run(const Params& p, cudaStream_t stream) {
  return p.out.kv_scales != nullptr ? RunCache<kHeadDim, fp8>(p, stream)
                                    : RunCache<kHeadDim, bf16>(p, stream);
}

}  // namespace
}  // namespace dlcore::kernels

int dlk_qk_norm_rope_kv_write(const dlk_new_tokens* tokens, void* kv_cache, const float* kv_scales,
                              void* q_out, const void* stream_rows, int stream_dim,
                              float stream_eps, int num_tokens, int num_q_heads, int num_kv_heads,
                              int block_size, int head_dim, cudaStream_t stream) {
  using namespace dlcore::kernels;
  if (!NormsBothOrNone(*tokens) || stream_dim % 8 != 0) return cudaErrorInvalidValue;
  if (num_tokens == 0) return cudaSuccess;
  const Params p{
      *tokens,
      {static_cast<bf16*>(q_out), kv_cache, kv_scales, num_q_heads, num_kv_heads, block_size},
      num_tokens,
      static_cast<const bf16*>(stream_rows),
      stream_dim,
      stream_eps};
  switch (head_dim) {
    case 64:
      return Run<64>(p, stream);
    case 128:
      return Run<128>(p, stream);
    case 256:
      return Run<256>(p, stream);
  }
  return cudaErrorInvalidValue;
}

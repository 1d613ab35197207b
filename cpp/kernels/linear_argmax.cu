// The greedy token of hundreds of rows: x W^T (wide_product.cuh), of which only each row's largest
// is kept, so that the logits are never written. Blocks offer the best of their tiles as 64-bit
// keys; the last block to end writes the tokens. Logits are rounded to bf16 before they are
// compared, as they are where they are written: the same tokens, the lowest of equals.

#include "kernels/argmax_state.cuh"
#include "kernels/kernels.h"
#include "kernels/wide_finish.cuh"

namespace dlcore::kernels::wide {
namespace {

constexpr int kTokenTiles = 8;  // go through the weight together: all of 2,048 rows

struct Best {
  float value = -INFINITY;
  int index = kNone;
  static constexpr int kNone = 0x7fffffff;

  // Indices come in ascending order.
  __device__ __forceinline__ void Offer(float v, int i) {
    if (v > value) value = v, index = i;
  }
  __device__ __forceinline__ unsigned long long Key() const {
    return index == kNone ? 0 : ArgmaxKey(value, index);
  }
};

class KeepBest {
 public:
  static constexpr int kWarpgroups = 2;
  static constexpr int kOutRows = kRows;
  static constexpr int kStages = 4;
  static constexpr int kBuffers = 1;
  struct Params {
    const int32_t* row_slots;
    int32_t* sampled;
    int32_t* last_tokens;
    RowState* states;
  };

  __device__ KeepBest(const Product& p, const Params& params, char*, uint64_t*, int)
      : p_(p), params_(params) {}

  __device__ __forceinline__ void Begin(const Tile&) {}
  __device__ __forceinline__ void Meanwhile(const Tile&) {}
  __device__ __forceinline__ void End(const Sums& sums, const Tile& tile) {
    Best best[2];
    const int first = tile.rows * kRows + FirstColumn();
#pragma unroll
    for (int i = 0; i < kRows / 64; ++i) {
      ForEachPair(i, [&](int j, int half, int at) {
        const int column = first + i * 64 + j * 8;
        const float2 v = ToFloat2(PackBf16(sums[at], sums[at + 1]));
        if (column >= p_.n) return;
        best[half].Offer(v.x, column);
        best[half].Offer(v.y, column + 1);
      });
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto key = WarpMax<4>(best[half].Key());
      const int token = tile.token + FirstRow() + half * 8;
      if (threadIdx.x % 4 == 0 && token < p_.num_tokens) {
        atomicMax(&params_.states[token].best, key);
      }
    }
  }
  __device__ __forceinline__ void Done() {
    __shared__ bool is_last;
    __threadfence();
    SyncConsumers();
    unsigned int* ended = &params_.states[0].arrived;
    if (threadIdx.x == 0) is_last = atomicAdd(ended, 1) == gridDim.x - 1;
    SyncConsumers();
    if (!is_last) return;
    __threadfence();
    for (int row = threadIdx.x; row < p_.num_tokens; row += kThreads) WriteToken(row);
    if (threadIdx.x == 0) *ended = 0;
  }

 private:
  __device__ static void SyncConsumers() {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + kWarpgroups), "n"(kThreads) : "memory");
  }
  __device__ void WriteToken(int row) const {
    const auto key = atomicExch(&params_.states[row].best, 0);
    const int slot = params_.row_slots[row], token = ArgmaxIndex(key);
    params_.sampled[row] = slot < 0 ? -1 : token;
    if (slot >= 0) params_.last_tokens[slot] = token;
  }

  static constexpr int kThreads = kWarpgroups * 128;
  const Product& p_;
  const Params& params_;
};

}  // namespace
}  // namespace dlcore::kernels::wide

int dlk_linear_argmax(const void* x, const void* weight, const int32_t* row_slots, int32_t* sampled,
                      int32_t* last_tokens, void* workspace, int num_rows, int vocab, int k,
                      cudaStream_t stream) {
  using namespace dlcore::kernels;
  if (num_rows < 1 || vocab % 8 != 0 || k % 8 != 0) return cudaErrorInvalidValue;
  wide::Product p{};
  p.num_tokens = num_rows, p.n = vocab, p.k = k;
  p.share_stride = wide::kRows / wide::kCluster;
  p.group = wide::kTokenTiles;
  const wide::KeepBest::Params params{row_slots, sampled, last_tokens,
                                      static_cast<RowState*>(workspace)};
  return wide::Run<wide::KeepBest>(p, x, weight, vocab, params, stream);
}

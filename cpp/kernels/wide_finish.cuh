#pragma once

#include "kernels/wide_product.cuh"

// What a Finish of wide products (wide_product.cuh) is made of: where a thread's sums belong, the
// scales of rows to be normalised, and the boxes in which outputs leave.

namespace dlcore::kernels::wide {

// The first of this thread's two rows of sums among the tile's tokens (the second is 8 further);
// the first of its columns.
__device__ __forceinline__ int FirstRow() {
  return threadIdx.x / kWarpSize * 16 + threadIdx.x % kWarpSize / 4;
}
__device__ __forceinline__ int FirstColumn() { return threadIdx.x % 4 * 2; }

// What x's rows are scaled with: 1 / rms where x is to be normalised, else 1.
struct RowScales {
  float values[2] = {1.0f, 1.0f};

  // The four lanes of a row share its pieces.
  __device__ __forceinline__ void Load(const Product& p, int token) {
    if (p.squares == nullptr) return;
    const int last = p.num_tokens - 1, lane = threadIdx.x % 4;
    const float* squares = p.squares + static_cast<int64_t>(lane) * p.num_tokens;
    float sums[2] = {};
#pragma unroll 2
    for (int piece = lane; piece < p.num_pieces; piece += 4, squares += 4 * p.num_tokens) {
      sums[0] += squares[min(token, last)];
      sums[1] += squares[min(token + 8, last)];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      values[half] = rsqrtf(WarpSum<4>(sums[half]) / p.k + p.eps);
    }
  }
};

// A warpgroup's boxes of 64 tokens by 64 outputs, on their way out by the copy engine.
template <int kBuffers>
class Boxes {
 public:
  __device__ Boxes(char* memory, int group)
      : memory_(memory), group_(group), leads_(threadIdx.x % 128 == 0) {
    const int g = threadIdx.x % kWarpSize / 4, row = threadIdx.x / kWarpSize % 4 * 16 + g;
    first_ = SharedAddress(memory) + row * kRowBytes + (g << 4) + threadIdx.x % 4 * 4;
  }

  __device__ __forceinline__ char* operator[](int i) const {
    return memory_ + i % kBuffers * kBoxBytes;
  }
  __device__ __forceinline__ bool leads() const { return leads_; }

  __device__ __forceinline__ void SyncWarpgroup() const {
    asm volatile("bar.sync %0, 128;" ::"r"(1 + group_) : "memory");
  }
  // Waits until at most kPending of the boxes sent are still being read.
  template <int kPending>
  __device__ __forceinline__ void WaitUntilRead() const {
    if (leads_) WaitForStoresToRead<kPending>();
    SyncWarpgroup();
  }
  // Before the block ends.
  __device__ __forceinline__ void Flush() const {
    if (leads_) WaitForStoresToRead<0>();
  }
  // To the map's rows from the tile's on, after all threads have written box i.
  __device__ __forceinline__ void Send(const CUtensorMap* map, const Tile& tile, int column,
                                       int i) const {
    FenceForCopyEngine();
    SyncWarpgroup();
    if (!leads_) return;
    StoreBox(map, tile.token + group_ * 64, column, (*this)[i]);
    CommitStores();
  }
  // The address in box i of this thread's j-th pair of columns, in its row `half`.
  __device__ __forceinline__ uint32_t Pair(int i, int j, int half) const {
    return (first_ ^ j << 4) + i % kBuffers * kBoxBytes + half * 8 * kRowBytes;
  }

 private:
  char* memory_;
  int group_;
  bool leads_;
  uint32_t first_;  // address of this thread's first pair
};

// Calls visit(j, row's half, sums' index) for a thread's pairs of columns 64 i + 8 j + FirstColumn.
template <class Visit>
__device__ __forceinline__ void ForEachPair(int i, Visit visit) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) visit(j, half, i * 32 + j * 4 + half * 2);
  }
}

}  // namespace dlcore::kernels::wide

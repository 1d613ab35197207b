#pragma once

#include "kernels/common.cuh"
#include "kernels/kernels.h"

// How decode attention's work is cut, on the device, from seq_lens: into units of a few tokens, an
// equal run of them for each worker of a fixed grid. Here workers are blocks; decode_runs.cuh has
// warps.

namespace dlcore::kernels {

inline constexpr int kWarpTokens = 16;
inline constexpr int kMaxGroup = 8;  // columns of a product
inline constexpr int kMaxSeqs = 3072;

// Whether warps that stream (decode_stream.cu) are faster than blocks that share pairs, as measured
// on an H100. Short rows leave a warp less time for its arithmetic: then more warps must have work.
inline bool StreamPays(int num_seqs, int num_kv_heads, int row_bytes) {
  return num_seqs * num_kv_heads >= (row_bytes >= 256 ? 264 : 1024);
}

// One large block per multiprocessor for the fewest pairs, where latency counts. For few, blocks
// that leave registers to those of the product before and of the one after, so that all three run
// side by side. Smaller ones for more pairs than multiprocessors, so that each has its own.
template <int kNumWarps, int kNumBlocksPerSm>
struct Shape {
  static constexpr int kWarps = kNumWarps;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlocksPerSm = kNumBlocksPerSm;
  static constexpr int kBlocks = kMultiprocessors * kBlocksPerSm;
  static constexpr int kUnitTokens = kWarps * kWarpTokens;
  // A warp may have more than the 128 registers that 16 warps on a multiprocessor leave each.
  static constexpr bool kIsRoomy = kWarps * kBlocksPerSm <= 8;
  // For the compiler, which then leaves a third of the registers to other kernels' blocks.
  static constexpr int kBoundThreads = kIsRoomy ? kThreads * 3 / 2 : kThreads;
  // A pair of up to this many units is not cut: merging would cost more than it saves.
  static constexpr int kWholeUnits = kWarps == 16 ? 4 : 8;
};
using FewestPairs = Shape<16, 1>;
using FewPairs = Shape<8, 1>;
using SomePairs = Shape<8, 2>;
using ManyPairs = Shape<4, 4>;
inline constexpr int kFewPairs = 48, kSomePairs = FewPairs::kBlocks + 1;
inline constexpr int kManyPairs = SomePairs::kBlocks;
inline constexpr int kMaxBlocks = ManyPairs::kBlocks;

template <class Shape>
__device__ int Units(const dlk_attention& a, int seq) {
  if (a.query_start_loc != nullptr && a.query_start_loc[seq + 1] - a.query_start_loc[seq] != 1) {
    return 0;
  }
  return (a.seq_lens[seq] + Shape::kUnitTokens - 1) / Shape::kUnitTokens;
}

// Fills starts [S + 1] with the exclusive prefix sums of the sequences' units, and returns the
// units of a block. Where all are short, each counts as the longest, so that no block's run ends
// inside a pair.
template <class Shape>
__device__ int ScanUnits(const dlk_attention& a, int* starts, int* scratch) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int per_thread = (a.num_seqs + Shape::kThreads - 1) / Shape::kThreads;
  const int first = min(static_cast<int>(threadIdx.x) * per_thread, a.num_seqs);
  const int last = min(first + per_thread, a.num_seqs);
  int longest = 0;
  for (int s = first; s < last; ++s) {
    const int units = Units<Shape>(a, s);
    starts[s + 1] = units;
    longest = max(longest, units);
  }
  longest = __reduce_max_sync(kFullMask, longest);
  if (lane == 0) scratch[warp] = longest;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < Shape::kWarps; ++w) longest = max(longest, scratch[w]);
  const bool whole = longest <= Shape::kWholeUnits;
  int sum = 0;
  for (int s = first; s < last; ++s) {
    if (whole && starts[s + 1] > 0) starts[s + 1] = longest;
    sum += starts[s + 1];
  }
  int scan = sum;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const int other = __shfl_up_sync(kFullMask, scan, offset);
    if (lane >= offset) scan += other;
  }
  __syncthreads();
  if (lane == kWarpSize - 1) scratch[warp] = scan;
  __syncthreads();
  int before = scan - sum;
  for (int w = 0; w < warp; ++w) before += scratch[w];
  for (int s = first; s < last; ++s) {
    before += starts[s + 1];
    starts[s + 1] = before;
  }
  if (threadIdx.x == 0) starts[0] = 0;
  __syncthreads();
  const int total = starts[a.num_seqs] * a.num_kv_heads;
  if (!whole) return max(Shape::kWholeUnits, (total + Shape::kBlocks - 1) / Shape::kBlocks);
  const int pairs = total / max(longest, 1);
  return longest * ((pairs + Shape::kBlocks - 1) / Shape::kBlocks);
}

// A run of units of one (sequence, KV head) pair.
template <class Shape>
struct Segment {
  int seq, head;
  int pair_start, num_units;  // all units of the pair, in the order of all work
  int unit_begin, unit_end;   // this block's, counted from pair_start
  int len;                    // of the sequence
  const int32_t* table;

  // slot_of(sequence): its row of block_tables.
  template <class SlotOf>
  __device__ Segment(const dlk_attention& a, const int* unit_starts, SlotOf slot_of, int begin,
                     int end) {
    int low = 0, high = a.num_seqs;  // the last sequence with unit_starts * Hk <= begin
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (unit_starts[middle] * a.num_kv_heads <= begin ? low : high) = middle;
    }
    seq = low;
    num_units = unit_starts[seq + 1] - unit_starts[seq];
    head = (begin - unit_starts[seq] * a.num_kv_heads) / num_units;
    pair_start = unit_starts[seq] * a.num_kv_heads + head * num_units;
    unit_begin = begin - pair_start;
    unit_end = min(num_units, end - pair_start);
    len = a.seq_lens[seq];
    table = a.block_tables + static_cast<int64_t>(slot_of(seq)) * a.max_blocks;
  }
  __device__ bool IsWholePair() const { return unit_begin == 0 && unit_end == num_units; }
  __device__ bool HasLastToken() const { return unit_end == num_units; }
  __device__ int FirstToken(int warp) const {
    return unit_begin * Shape::kUnitTokens + warp * kWarpTokens;
  }
  __device__ int EndToken() const { return min(len, unit_end * Shape::kUnitTokens); }
  __device__ int Block(int token, int block_shift) const {
    return token < EndToken() ? __ldcg(table + (token >> block_shift)) : 0;
  }
};

}  // namespace dlcore::kernels

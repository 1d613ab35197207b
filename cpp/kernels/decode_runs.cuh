#pragma once

#include "kernels/decode_schedule.cuh"

// How decode attention's work is cut between warps: one run of units for each.

namespace dlcore::kernels {

template <int kNumWarps, int kNumBlocks = kMultiprocessors>
struct WarpShape {
  static constexpr int kWarps = kNumWarps;  // of a block, one on each multiprocessor
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlocks = kNumBlocks;
  static constexpr int kWorkers = kBlocks * kWarps;
  static constexpr int kUnitTokens = kWarpTokens;
};

// Whole pairs need no merging. They may leave multiprocessors unequal shares, a little: memory is
// the bottleneck, and those that still read get all of it.
__device__ inline bool KeepsPairsWhole(int longest, int pairs, int total, int num_blocks) {
  const int largest_share = (pairs + num_blocks - 1) / num_blocks * longest;
  return static_cast<int64_t>(largest_share) * num_blocks <= static_cast<int64_t>(total) * 9 / 8;
}

// What a block keeps of all sequences, in dynamic shared memory.
struct SeqTable {
  int* starts;  // [S + 1]: exclusive prefix sums of the sequences' units
  int* slots;   // [S]: rows of block_tables

  static constexpr size_t Bytes(int num_seqs) { return (2 * num_seqs + 1) * sizeof(int); }
  __device__ SeqTable(char* bytes, int num_seqs)
      : starts(reinterpret_cast<int*>(bytes)), slots(starts + num_seqs + 1) {}
  template <class Shape>
  __device__ Segment<Shape> SegmentAt(const dlk_attention& a, int begin, int end) const {
    return Segment<Shape>(
        a, starts, [&](int seq) { return slots[seq]; }, begin, end);
  }
};

// Every worker's run of units: of `grain` units at least, a whole pair's, or 1 where pairs are cut.
template <class Shape>
struct Runs {
  int total, grain;

  __device__ int Begin(int worker) const {
    const int64_t grains = total / grain;
    return static_cast<int>(grains * worker / Shape::kWorkers) * grain;
  }
  __device__ int Owner(int unit) const {  // the worker whose run has it; of runs of grain 1
    return static_cast<int>(((unit + 1ll) * Shape::kWorkers - 1) / total);
  }
  // Of the workers that share a pair. Where there are more workers than units, some have none.
  __device__ int NumParts(int pair_start, int num_units) const {
    return min(num_units, Owner(pair_start + num_units - 1) - Owner(pair_start) + 1);
  }
  __device__ int Sharer(int pair_start, int i) const {
    return total < Shape::kWorkers ? Owner(pair_start + i) : Owner(pair_start) + i;
  }
  // Where a worker leaves its sums of the pair: a run cuts the pair it begins within, and its last.
  __device__ int Part(int worker, int pair_start) const {
    return worker * 2 + (pair_start >= Begin(worker) ? 1 : 0);
  }
};

// Fills the table and cuts the work. Where pairs stay whole, each counts as the longest, so that no
// run ends inside a pair. scratch: [kWarps].
template <class Shape>
__device__ Runs<Shape> CutRuns(const dlk_attention& a, const SeqTable& seqs, int3* scratch) {
  int* starts = seqs.starts;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int per_thread = (a.num_seqs + Shape::kThreads - 1) / Shape::kThreads;
  const int first = min(static_cast<int>(threadIdx.x) * per_thread, a.num_seqs);
  const int last = min(first + per_thread, a.num_seqs);
  int longest = 0, sum = 0, count = 0;
  for (int s = first; s < last; ++s) {
    int num_queries = 1;
    if (a.query_start_loc != nullptr) {
      num_queries = a.query_start_loc[s + 1] - a.query_start_loc[s];
    }
    const int len = a.seq_lens[s];  // requested without waiting for the number of queries
    const int units = num_queries == 1 ? (len + Shape::kUnitTokens - 1) / Shape::kUnitTokens : 0;
    starts[s + 1] = units;
    seqs.slots[s] = a.seq_slots != nullptr ? a.seq_slots[s] : s;
    longest = max(longest, units);
    sum += units;
    count += units > 0;
  }
  longest = __reduce_max_sync(kFullMask, longest);
  const int warp_sum = __reduce_add_sync(kFullMask, sum);
  const int warp_seqs = __reduce_add_sync(kFullMask, count);
  if (lane == 0) scratch[warp] = make_int3(longest, warp_sum, warp_seqs);
  __syncthreads();
  int total = 0, total_seqs = 0;
#pragma unroll
  for (int w = 0; w < Shape::kWarps; ++w) {
    const int3 part = scratch[w];
    longest = max(longest, part.x);
    total += part.y;
    total_seqs += part.z;
  }
  const int heads = a.num_kv_heads;
  const bool whole = KeepsPairsWhole(longest, total_seqs * heads, total * heads, Shape::kBlocks);
  if (whole) sum = count * longest;
  int scan = sum;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const int other = __shfl_up_sync(kFullMask, scan, offset);
    if (lane >= offset) scan += other;
  }
  int before = scan - sum;
  for (int w = 0; w < warp; ++w) before += whole ? scratch[w].z * longest : scratch[w].y;
  for (int s = first; s < last; ++s) {
    before += whole && starts[s + 1] > 0 ? longest : starts[s + 1];
    starts[s + 1] = before;
  }
  if (threadIdx.x == 0) starts[0] = 0;
  __syncthreads();
  return {starts[a.num_seqs] * a.num_kv_heads, whole ? max(longest, 1) : 1};
}

}  // namespace dlcore::kernels

#pragma once

#include "kernels/common.cuh"
#include "kernels/kernels.h"

// Which queries and keys each tile of prefill attention's work holds, read on the device.

namespace dlcore::kernels {

inline constexpr int kRows = 128;    // of queries, a tile of work
inline constexpr int kTokens = 128;  // of keys and values, a tile

struct PrefillParams {
  dlk_attention a;
  int block_shift;  // block_size = 1 << block_shift
  int min_query;
  int *taken, *left;  // counters; zero between launches
};

// A tile of work.
struct Work {
  int kv_head;
  int query_start, num_queries;  // the sequence's tokens in the batch
  int first_query;               // of this tile, within the sequence
  int len;                       // of the context, this step's tokens included; 0 = no more work
  int num_tiles;                 // of keys that the tile's last query sees
  const int32_t* table;

  __device__ int Position(int query) const { return len - num_queries + first_query + query; }
};

// The next item that no block has taken, to all lanes of one warp. Blocks begin with their own.
__device__ inline int TakeItem(const PrefillParams& p) {
  int item = 0;
  if (threadIdx.x % kWarpSize == 0) item = atomicAdd(p.taken, 1);
  return static_cast<int>(gridDim.x) + __shfl_sync(kFullMask, item, 0);
}
// By one thread of each block once it takes no more: the last cleans up for the next launch.
__device__ inline void LeaveItems(const PrefillParams& p) {
  if (atomicAdd(p.left, 1) != static_cast<int>(gridDim.x) - 1) return;
  *p.taken = 0;
  *p.left = 0;
}

// The item-th tile of work, found by the lanes of one warp. Tiles are counted from the batch's end,
// for all KV heads together.
__device__ inline Work FindWork(const PrefillParams& p, int item, int queries_per_tile) {
  const int lane = threadIdx.x % kWarpSize;
  int tile = item / p.a.num_kv_heads;
  for (int end = p.a.num_seqs; end > 0; end -= kWarpSize) {
    const int seq = end - 1 - lane;
    int tiles = 0;
    if (seq >= 0) {
      const int queries = p.a.query_start_loc[seq + 1] - p.a.query_start_loc[seq];
      if (queries > p.min_query && p.a.seq_lens[seq] > 0) {
        tiles = (queries + queries_per_tile - 1) / queries_per_tile;
      }
    }
    int scan = tiles;  // inclusive
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const int other = __shfl_up_sync(kFullMask, scan, offset);
      if (lane >= offset) scan += other;
    }
    const unsigned holders = __ballot_sync(kFullMask, tile < scan);
    if (holders == 0) {
      tile -= __shfl_sync(kFullMask, scan, kWarpSize - 1);
      continue;
    }
    const int holder = __ffs(holders) - 1;
    const int index = tile - __shfl_sync(kFullMask, scan - tiles, holder);
    const int found = end - 1 - holder;
    Work work;
    work.kv_head = item % p.a.num_kv_heads;
    work.query_start = p.a.query_start_loc[found];
    work.num_queries = p.a.query_start_loc[found + 1] - work.query_start;
    work.first_query = (__shfl_sync(kFullMask, tiles, holder) - 1 - index) * queries_per_tile;
    work.len = p.a.seq_lens[found];
    const int last_query = min(work.num_queries, work.first_query + queries_per_tile) - 1;
    work.num_tiles = (work.len - work.num_queries + last_query) / kTokens + 1;
    const int slot = p.a.seq_slots != nullptr ? p.a.seq_slots[found] : found;
    work.table = p.a.block_tables + static_cast<int64_t>(slot) * p.a.max_blocks;
    return work;
  }
  return Work{};
}

}  // namespace dlcore::kernels

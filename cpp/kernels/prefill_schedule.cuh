#pragma once

#include <climits>

#include "kernels/mixed_attention.cuh"

// Which queries and keys each part of prefill attention's work holds, read on the device. Where a
// batch has fewer tiles of work than there are multiprocessors, as a prompt whose beginning is
// cached, several blocks share a tile's keys.

namespace dlcore::kernels {

inline constexpr int kRows = 128;    // of queries, a tile of work
inline constexpr int kTokens = 128;  // of keys and values, a tile
// Of keys, a part has at least so many where a tile of work has several: adding up takes as long.
inline constexpr int kFewestTiles = 4;

struct PrefillParams {
  dlk_attention a;
  int block_shift;  // block_size = 1 << block_shift
  int min_query;
  PrefillWorkspace* workspace;
  int num_own;  // blocks that begin with a part of their own
  bool beside_decode;
  bool may_split;  // tiles of work are so few that their keys may be shared
};

// A tile of work, or one part of several of its keys.
struct Work {
  int kv_head;
  int query_start, num_queries;  // the sequence's tokens in the batch
  int first_query;               // of this tile, within the sequence
  int len;                       // of the context, this step's tokens included; 0 = no more work
  int end_tile, num_tiles;       // of keys: [end_tile - num_tiles, end_tile); may be none
  int part, num_parts;
  int slot;  // of the tile's first part in the workspace, the next ones' num_kv_heads further each
  const int32_t* table;

  __device__ int Position(int query) const { return len - num_queries + first_query + query; }
  // The same, where the compiler is to know what loops and branches depend on (Uniform).
  __device__ Work OfWarp() const {
    Work work = *this;
    for (int* of : {&work.len, &work.end_tile, &work.num_tiles, &work.part, &work.num_parts}) {
      *of = Uniform(*of);
    }
    return work;
  }
};

// By one thread of each block once it takes no more: the last cleans up for the next launch.
__device__ inline void LeaveItems(const PrefillParams& p) {
  if (atomicAdd(&p.workspace->counters.left, 1) != static_cast<int>(gridDim.x) - 1) return;
  p.workspace->counters = {};
  if (p.beside_decode) WaitForPrevious();
}

// All parts of the work, counted from the batch's end and for all KV heads together. Used by one
// warp at a time, whose lanes look at as many sequences at once.
class WorkList {
 public:
  __device__ WorkList(const PrefillParams& params, int queries_per_tile)
      : p_(params), queries_per_tile_(queries_per_tile), last_(Load(params.a.num_seqs)) {
    if (!p_.may_split) return;
    int total = 0;
#pragma unroll 1
    for (int end = p_.a.num_seqs; end > 0; end -= kWarpSize) {
      const Prompt prompt = PromptAt(end);
      total += prompt.tiles * KeyTiles(prompt);
    }
    total = __reduce_add_sync(kFullMask, total) * p_.a.num_kv_heads;
    // So that all parts that share tiles find a slot.
    key_tiles_per_part_ =
        max(kFewestTiles, (total + PrefillWorkspace::kSlots - 1) / PrefillWorkspace::kSlots);
  }

  // The index of the next part that no block has taken.
  __device__ int Take() const {
    int item = 0;
    if (threadIdx.x % kWarpSize == 0) item = atomicAdd(&p_.workspace->counters.taken, 1);
    return p_.num_own + __shfl_sync(kFullMask, item, 0);
  }

  __device__ Work At(int item) const {
    constexpr int kShift = 24;  // two sums in a word: all parts, and above them those with a slot
    constexpr unsigned kLow = (1u << kShift) - 1;
    const int lane = threadIdx.x % kWarpSize;
    int index = item / p_.a.num_kv_heads, first_slot = 0;
#pragma unroll 1
    for (int end = p_.a.num_seqs; end > 0; end -= kWarpSize) {
      const Prompt prompt = PromptAt(end);
      const int num_parts = max(1, KeyTiles(prompt) / key_tiles_per_part_);
      const unsigned parts = prompt.tiles * num_parts;
      const unsigned own = parts | (num_parts > 1 ? parts << kShift : 0);
      unsigned scan = own;  // inclusive
#pragma unroll
      for (int offset = 1; offset < kWarpSize; offset *= 2) {
        const unsigned other = __shfl_up_sync(kFullMask, scan, offset);
        if (lane >= offset) scan += other;
      }
      const unsigned holders = __ballot_sync(kFullMask, index < static_cast<int>(scan & kLow));
      if (holders != 0) {
        const int holder = __ffs(holders) - 1;
        const unsigned before = __shfl_sync(kFullMask, scan - own, holder);
        index -= static_cast<int>(before & kLow);
        first_slot += static_cast<int>(before >> kShift);
        const Prompt its{__shfl_sync(kFullMask, prompt.query_start, holder),
                         __shfl_sync(kFullMask, prompt.num_queries, holder),
                         __shfl_sync(kFullMask, prompt.len, holder),
                         __shfl_sync(kFullMask, prompt.row, holder),
                         __shfl_sync(kFullMask, prompt.tiles, holder)};
        return PartOf(its, item % p_.a.num_kv_heads, index,
                      __shfl_sync(kFullMask, num_parts, holder), first_slot);
      }
      const unsigned all = __shfl_sync(kFullMask, scan, kWarpSize - 1);
      index -= static_cast<int>(all & kLow);
      first_slot += static_cast<int>(all >> kShift);
    }
    return Work{};
  }

 private:
  struct Prompt {
    int query_start, num_queries;
    int len;
    int row;    // of the block tables
    int tiles;  // for each KV head, before their keys are shared; 0: not for this kernel
  };

  // Each lane's sequence of those before `end`, the last one first.
  __device__ Prompt PromptAt(int end) const { return end == p_.a.num_seqs ? last_ : Load(end); }
  __device__ Prompt Load(int end) const {
    const int seq = end - 1 - static_cast<int>(threadIdx.x % kWarpSize);
    if (seq < 0) return {};
    const int start = p_.a.query_start_loc[seq];
    const int queries = p_.a.query_start_loc[seq + 1] - start, len = p_.a.seq_lens[seq];
    const int row = p_.a.seq_slots != nullptr ? p_.a.seq_slots[seq] : seq;
    const int tiles = (queries + queries_per_tile_ - 1) / queries_per_tile_;
    return {start, queries, len, row, queries > p_.min_query && len > 0 ? tiles : 0};
  }
  // Of keys that a tile of queries sees, about the mean.
  __device__ static int KeyTiles(const Prompt& prompt) {
    return (prompt.len - prompt.num_queries + prompt.num_queries / 2) / kTokens + 1;
  }

  // The index-th part of a sequence's work for one KV head. A tile's parts follow each other, tiles
  // with the longest context go first. first_slot: of the sequence's parts, where they have slots.
  __device__ Work PartOf(const Prompt& prompt, int kv_head, int index, int num_parts,
                         int first_slot) const {
    Work work;
    work.kv_head = kv_head;
    work.query_start = prompt.query_start;
    work.num_queries = prompt.num_queries;
    work.first_query = (prompt.tiles - 1 - index / num_parts) * queries_per_tile_;
    work.len = prompt.len;
    const int last_query = min(work.num_queries, work.first_query + queries_per_tile_) - 1;
    const int key_tiles = (work.len - work.num_queries + last_query) / kTokens + 1;
    work.part = index % num_parts;
    work.num_parts = min(num_parts, key_tiles);  // the others are none
    const int share = key_tiles / work.num_parts, rest = key_tiles % work.num_parts;
    work.num_tiles = work.part < work.num_parts ? share + (work.part < rest ? 1 : 0) : 0;
    work.end_tile = work.part * share + min(work.part, rest) + work.num_tiles;
    work.slot = (first_slot + index - work.part) * p_.a.num_kv_heads + kv_head;
    work.table = p_.a.block_tables + static_cast<int64_t>(prompt.row) * p_.a.max_blocks;
    return work;
  }

  const PrefillParams& p_;
  const int queries_per_tile_;
  int key_tiles_per_part_ = INT_MAX;  // those of a part of a tile whose keys are shared
  const Prompt last_;                 // the batch's last sequences are asked for most
};

}  // namespace dlcore::kernels

#pragma once

#include "kernels/paged.cuh"
#include "kernels/prefill_schedule.cuh"
#include "kernels/tensor_map.cuh"

// How queries, keys and values of prefill attention come to shared memory: by one loading warp, and
// for an E4M3 cache by warps that convert its tiles.

namespace dlcore::kernels {

inline constexpr int kHeadDim = 128;
inline constexpr int kStages = 2;
inline constexpr int kConsumers = 256;               // two warpgroups
inline constexpr int kColumnBytes = 128 * kTokens;   // 64 values of every row of a tile
inline constexpr int kTileBytes = 2 * kColumnBytes;  // both columns
static_assert(kRows == kTokens);

// Of the warps beside the consumers', the first loads and the others convert.
template <class Cache>
inline constexpr int kHelperWarps = sizeof(Cache) == 1 ? 8 : 4;
inline constexpr int kConverters = kHelperWarps<fp8> - 1;

template <class Cache>
struct Staged {};
template <>
struct Staged<fp8> {  // one tile each of keys and values as they lie in the cache
  char k[kColumnBytes], v[kColumnBytes];
};

template <class Cache>
struct alignas(1024) Shared {
  char q[2][kTileBytes];
  char k[kStages][kTileBytes];
  char v[kStages][kTileBytes];
  Staged<Cache> staged;
  uint64_t q_full[2], q_empty[2];
  uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  uint64_t staged_k_full, staged_k_empty, staged_v_full, staged_v_empty;
  int staged_end;  // comes with staged_k_full: no more tiles
  int arrived[2];  // parts of a warpgroup's tile of work
  float softmax_marks[kConsumers / kWarpSize];
  Work work[2];  // comes with q
};

// Keys and values of a part of the work; `first_load` counts all that came before. Tiles of keys
// come last first: those that need the causal mask lead.
template <class Cache>
__device__ void LoadContext(const PrefillParams& p, const CUtensorMap* cache, const Work& work,
                            int first_load, Shared<Cache>& shared) {
  constexpr int kColumns = sizeof(Cache);  // of 128 bytes, a row
  const int lane = threadIdx.x % kWarpSize;
  const int boxes = kTokens >> p.block_shift;  // of one column of a tile
  const int box = lane / kColumns, column = lane % kColumns;
  const int last_block = (work.len - 1) >> p.block_shift;
  const int offset = column * kColumnBytes + box * p.a.block_size * 128;
  auto row_of = [&](int i) {
    // Past the context any block of it will do: those scores are masked.
    const int first_token = (work.end_tile - 1 - i) * kTokens;
    const int index = min((first_token >> p.block_shift) + box, last_block);
    return (work.table[index] * 2 * p.a.num_kv_heads + work.kv_head) << p.block_shift;
  };
  auto load = [&](char* tile, int row, uint64_t* full, uint64_t* empty, int parity) {
    Wait(empty, parity);
    if (lane == 0) ArriveExpecting(full, kColumns * kColumnBytes);
    __syncwarp();
    if (box < boxes) CopyBox(tile + offset, cache, row, column * 64, full);
  };
  const int values = p.a.num_kv_heads << p.block_shift;  // rows after the keys
  int next_row = box < boxes ? row_of(0) : 0;
  for (int i = 0; i < work.num_tiles; ++i) {
    const int n = first_load + i, row = next_row;
    if (box < boxes && i + 1 < work.num_tiles) next_row = row_of(i + 1);
    if constexpr (sizeof(Cache) == 1) {
      const int parity = (n & 1) ^ 1;
      load(shared.staged.k, row, &shared.staged_k_full, &shared.staged_k_empty, parity);
      load(shared.staged.v, row + values, &shared.staged_v_full, &shared.staged_v_empty, parity);
    } else {
      const int stage = n % kStages, parity = (n / kStages & 1) ^ 1;
      load(shared.k[stage], row, &shared.k_full[stage], &shared.k_empty[stage], parity);
      load(shared.v[stage], row + values, &shared.v_full[stage], &shared.v_empty[stage], parity);
    }
  }
}

// For q, and for what this step adds to the cache.
__device__ __forceinline__ void WaitForHeads(const PrefillParams& p) {
  if (p.beside_decode) {
    PollReady(&p.workspace->counters, p.a.kv_cache);
  } else {
    WaitForPrevious();
  }
}

// The loading warp.
template <class Cache>
__device__ void Produce(const PrefillParams& p, const CUtensorMap* queries,
                        const CUtensorMap* cache, Shared<Cache>& shared) {
  const int lane = threadIdx.x % kWarpSize;
  const int group = p.a.num_q_heads / p.a.num_kv_heads, queries_per_tile = kRows / group;
  const WorkList list(p, queries_per_tile);
  const bool has_own = static_cast<int>(blockIdx.x) < p.num_own;
  if (!has_own) WaitForHeads(p);
  int item = has_own ? static_cast<int>(blockIdx.x) : list.Take();
  int n = 0, loads = 0;  // of work, and of its tiles of keys
  for (bool is_first = has_own;; is_first = false, item = list.Take()) {
    const Work work = list.At(item);  // the only call: its code is long
    if (is_first) WaitForHeads(p);
    if (work.len != 0 && work.num_tiles == 0) continue;
    const int buffer = n % 2;
    uint64_t* full = &shared.q_full[buffer];
    Wait(&shared.q_empty[buffer], (n / 2 & 1) ^ 1);
    if (lane == 0) {
      shared.work[buffer] = work;
      if (work.len == 0) {
        Arrive(full);
      } else {
        ArriveExpecting(full, queries_per_tile * group * kHeadDim * sizeof(bf16));
        for (int column = 0; column < 2; ++column) {
          CopyHeads(shared.q[buffer] + column * kColumnBytes, queries,
                    work.query_start + work.first_query, work.kv_head * group, column * 64, full);
        }
      }
    }
    if (work.len == 0) {
      if (lane == 0) LeaveItems(p);
      if constexpr (sizeof(Cache) == 1) {
        Wait(&shared.staged_k_empty, (loads & 1) ^ 1);
        shared.staged_end = 1;
        if (lane == 0) Arrive(&shared.staged_k_full);
      }
      return;
    }
    LoadContext(p, cache, work, loads, shared);
    loads += work.num_tiles;
    ++n;
  }
}

__device__ __forceinline__ int SwizzledOffset(int row, int chunk) {  // of 16 bytes in a tile
  return (chunk / 8) * kColumnBytes + row * 128 + ((chunk % 8) ^ (row % 8)) * 16;
}

// A tile from E4M3 to bf16, by kConverters warps.
__device__ __forceinline__ void ConvertTile(const char* from, char* to) {
  const int lane = threadIdx.x % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x - kConsumers) / kWarpSize - 1;
#pragma unroll 2
  for (int part = warp; part < kTokens / 4; part += kConverters) {
    // Lanes of 8 rows at once meet all banks.
    const int row = part / 2 * 8 + lane % 8, chunk = part % 2 * 4 + lane / 8;
    const uint4 v = Load16(from + SwizzledOffset(row, chunk));
    Store16(to + SwizzledOffset(row, 2 * chunk), E4m3ToBf16(make_uint2(v.x, v.y)));
    Store16(to + SwizzledOffset(row, 2 * chunk + 1), E4m3ToBf16(make_uint2(v.z, v.w)));
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncwarp();
}

// The converting warps, of an E4M3 cache.
__device__ inline void Convert(Shared<fp8>& shared) {
  const bool is_leader = threadIdx.x % kWarpSize == 0;
  for (int n = 0;; ++n) {
    const int stage = n % kStages, parity = (n / kStages & 1) ^ 1;
    Wait(&shared.staged_k_full, n & 1);
    if (shared.staged_end != 0) return;
    Wait(&shared.k_empty[stage], parity);
    ConvertTile(shared.staged.k, shared.k[stage]);
    if (is_leader) {
      Arrive(&shared.k_full[stage]);
      Arrive(&shared.staged_k_empty);
    }
    Wait(&shared.staged_v_full, n & 1);
    Wait(&shared.v_empty[stage], parity);
    ConvertTile(shared.staged.v, shared.v[stage]);
    if (is_leader) {
      Arrive(&shared.v_full[stage]);
      Arrive(&shared.staged_v_empty);
    }
  }
}

}  // namespace dlcore::kernels

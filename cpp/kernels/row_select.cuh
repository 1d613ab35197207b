#pragma once

#include <cfloat>

#include <cooperative_groups.h>

#include "kernels/common.cuh"

// A row of logits in the shared memory of a cluster of blocks, and exact selection of its most
// likely tokens without a sort.
//
// Tokens are ordered by rank: value, then lowest index; all ranks differ. Select finds the shortest
// prefix of that order whose count, or probability mass, reaches an amount: histograms narrow the
// interval that holds the prefix's last token (first by distance from the maximum, then by bits of
// the rank) until its tokens fit a list, which one block sorts. Masses are fixed-point integers, so
// that sums are exact in any order and results do not depend on the schedule.

namespace dlcore::kernels {

namespace cg = cooperative_groups;
using u64 = unsigned long long;

inline constexpr int kRowBlocks = 8;  // of a cluster
inline constexpr int kRowThreads = 512;
inline constexpr int kRowWarps = kRowThreads / kWarpSize;
inline constexpr int kBins = 4 * kRowThreads;
inline constexpr int kListSize = 2 * kRowThreads;
inline constexpr float kBinsPerUnit = 64;            // of logits, in the first histogram
inline constexpr float kMassOne = 1099511627776.0f;  // 2^40: the mass of the most likely token

struct RowShared {
  unsigned counts[kBins];
  unsigned mass_low[kBins], mass_high[kBins];
  u64 list[kListSize];  // the leader's
  u64 exchange[2];      // a block's part of a cluster-wide reduction
  u64 broadcast[2];     // the leader's word to all
  u64 scratch[2][kRowWarps];
  u64 nucleus_end;
  unsigned best_score;  // of the block so far, as ordered bits
  unsigned list_size;
  struct {
    int bin;  // -1: all bins together do not reach the amount
    unsigned count, count_above;
    u64 amount, above;
  } found;
};

__device__ __forceinline__ unsigned OrderedBits(float x) {
  const unsigned bits = __float_as_uint(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float FromOrderedBits(unsigned bits) {
  return __uint_as_float((bits & 0x80000000u) != 0 ? bits & 0x7fffffffu : ~bits);
}
__device__ __forceinline__ u64 Rank(float x, int token) {
  return static_cast<u64>(OrderedBits(x)) << 32 | static_cast<unsigned>(~token);
}
__device__ __forceinline__ int TokenOf(u64 rank) {
  return static_cast<int>(~static_cast<unsigned>(rank));
}
__device__ __forceinline__ float ValueOf(u64 rank) {
  return FromOrderedBits(static_cast<unsigned>(rank >> 32));
}
__device__ __forceinline__ u64 TiesOf(u64 rank) { return rank >> 32 << 32; }  // the last of them

inline int RowSlice(int vocab) {  // a block's values, a multiple of 4
  return CeilDiv(CeilDiv(vocab, kRowBlocks), 4) * 4;
}
inline size_t RowSharedBytes(int vocab) {
  return sizeof(RowShared) + RowSlice(vocab) * sizeof(float);
}

// What one block holds of the row; every member function is called by all threads of the cluster.
struct Row {
  RowShared& shared;
  float* values;  // [slice], a multiple of 4, -inf past the row's end; no NaN, no -0
  int slice, first_token;
  float max;     // of the row
  bool has_nan;  // the row did; such values count as -inf
  // Of the two exchange and broadcast buffers, the next to use: each is written again only after
  // the barrier of the other's use.
  int next_exchange, next_broadcast;

  __device__ Row(char* bytes, int vocab)
      : shared(*reinterpret_cast<RowShared*>(bytes)),
        values(reinterpret_cast<float*>(bytes + sizeof(RowShared))),
        slice((((vocab + kRowBlocks - 1) / kRowBlocks) + 3) / 4 * 4),
        first_token(static_cast<int>(cg::this_cluster().block_rank()) * slice),
        max(-INFINITY),
        has_nan(false),
        next_exchange(0),
        next_broadcast(0) {}

  // visit(value, token) for each value of the block.
  template <class Visit>
  __device__ void ForEach(Visit visit) const {
    for (int i = threadIdx.x * 4; i < slice; i += kRowThreads * 4) {
      const float4 v = *reinterpret_cast<const float4*>(values + i);
      visit(v.x, first_token + i);
      visit(v.y, first_token + i + 1);
      visit(v.z, first_token + i + 2);
      visit(v.w, first_token + i + 3);
    }
  }

  // Reduces one value per thread over the cluster, to every thread.
  template <class Combine>
  __device__ u64 Reduce(u64 v, Combine combine) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      v = combine(v, __shfl_xor_sync(kFullMask, v, offset));
    }
    if (threadIdx.x % kWarpSize == 0) shared.scratch[0][threadIdx.x / kWarpSize] = v;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 1; w < kRowWarps; ++w) v = combine(v, shared.scratch[0][w]);
      shared.exchange[next_exchange] = v;
    }
    auto cluster = cg::this_cluster();
    cluster.sync();
    v = *cluster.map_shared_rank(&shared.exchange[next_exchange], 0);
#pragma unroll 1
    for (int b = 1; b < kRowBlocks; ++b) {
      v = combine(v, *cluster.map_shared_rank(&shared.exchange[next_exchange], b));
    }
    next_exchange ^= 1;
    return v;
  }
  __device__ u64 ReduceMax(u64 v) {
    return Reduce(v, [](u64 a, u64 b) { return a > b ? a : b; });
  }
  __device__ u64 ReduceSum(u64 v) {
    return Reduce(v, [](u64 a, u64 b) { return a + b; });
  }

  __device__ __forceinline__ u64 Mass(float x) const {
    return static_cast<u64>(__float2ull_rn(__expf(x - max) * kMassOne));
  }
  __device__ __forceinline__ int DistanceBin(float x) const {
    return min(__float2int_rz((max - x) * kBinsPerUnit), kBins - 1);
  }
};

struct Selection {
  u64 rank;       // of the prefix's last token
  bool complete;  // the leader's list holds the whole prefix, all ties of its last token, sorted
  unsigned list_size;
};

// Exclusive scan over the block of each thread's pair; the pair becomes what lies before it, and
// the totals are returned.
__device__ inline ulonglong2 BlockScan(RowShared& shared, u64& a, u64& b) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  u64 x = a, y = b;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const u64 other_x = __shfl_up_sync(kFullMask, x, offset);
    const u64 other_y = __shfl_up_sync(kFullMask, y, offset);
    if (lane >= offset) x += other_x, y += other_y;
  }
  __syncthreads();
  if (lane == kWarpSize - 1) shared.scratch[0][warp] = x, shared.scratch[1][warp] = y;
  __syncthreads();
  a = x - a, b = y - b;
  ulonglong2 total = make_ulonglong2(0, 0);
  for (int w = 0; w < kRowWarps; ++w) {
    if (w < warp) a += shared.scratch[0][w], b += shared.scratch[1][w];
    total.x += shared.scratch[0][w], total.y += shared.scratch[1][w];
  }
  return total;
}

// Sorts the block's list, largest first.
__device__ inline void SortList(u64* list, unsigned size) {
  unsigned width = 2;
  while (width < size) width *= 2;
  for (unsigned i = size + threadIdx.x; i < width; i += kRowThreads) list[i] = 0;
  __syncthreads();
  for (unsigned block = 2; block <= width; block *= 2) {
    for (unsigned step = block / 2; step > 0; step /= 2) {
      for (unsigned pair = threadIdx.x; pair < width / 2; pair += kRowThreads) {
        const unsigned i = pair / step * step * 2 + pair % step, j = i + step;
        const u64 a = list[i], b = list[j];
        if ((a < b) == ((i & block) == 0)) list[i] = b, list[j] = a;
      }
      __syncthreads();
    }
  }
}

// In a sorted list: the first rank at which the summed mass reaches `amount`, else the last.
// share >= 0: `amount` is that share of the mass of all entries of at least `lowest`.
static __device__ __noinline__ u64 ListNucleus(Row& row, unsigned size, u64 lowest, float share,
                                               u64 amount) {
  RowShared& shared = row.shared;
  u64 mass[2], sum = 0, unused = 0;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const unsigned i = threadIdx.x * 2 + j;
    const bool counts = i < size && shared.list[i] >= lowest;
    sum += mass[j] = counts ? row.Mass(ValueOf(shared.list[i])) : 0;
  }
  const u64 total = BlockScan(shared, sum, unused).x;
  if (share >= 0) amount = static_cast<u64>(ceil(static_cast<double>(share) * total));
  amount = ::max(amount, 1ull);
  if (threadIdx.x == 0) shared.nucleus_end = size > 0 ? shared.list[size - 1] : 0;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if (sum < amount && sum + mass[j] >= amount) {
      shared.nucleus_end = shared.list[threadIdx.x * 2 + j];
    }
    sum += mass[j];
  }
  __syncthreads();
  return shared.nucleus_end;
}

// One histogram over the cluster, of the ranks in [low, high], or with shift < 0 of the values'
// distances from the maximum (then low has no index bits): found tells the bin in which the
// running sum reaches the amount (with `share` >= 0: that share of all the mass).
__device__ inline void FindBin(Row& row, u64 low, u64 high, int shift, bool by_mass, float share,
                               u64 amount) {
  RowShared& shared = row.shared;
  auto cluster = cg::this_cluster();
  const float low_value = ValueOf(low);
  for (int i = threadIdx.x; i < kBins; i += kRowThreads) {
    shared.counts[i] = 0;
    if (by_mass) shared.mass_low[i] = shared.mass_high[i] = 0;
  }
  __syncthreads();
  row.ForEach([&](float x, int token) {
    int bin;
    if (shift < 0) {
      if (x < low_value) return;
      bin = row.DistanceBin(x);
    } else {
      const u64 rank = Rank(x, token);
      if (rank < low || rank > high) return;
      bin = static_cast<int>((high - rank) >> shift);
    }
    atomicAdd(&shared.counts[bin], 1);
    if (!by_mass) return;
    const u64 mass = row.Mass(x);
    const auto low_half = static_cast<unsigned>(mass);
    const unsigned before = atomicAdd(&shared.mass_low[bin], low_half);
    const unsigned carry = static_cast<unsigned>(mass >> 32) + (before + low_half < before);
    if (carry != 0) atomicAdd(&shared.mass_high[bin], carry);
  });
  cluster.sync();
  unsigned counts[4] = {};
  u64 masses[4] = {};
#pragma unroll 2
  for (int b = 0; b < kRowBlocks; ++b) {
    const unsigned* remote = cluster.map_shared_rank(&shared.counts[threadIdx.x * 4], b);
    const uint4 c = *reinterpret_cast<const uint4*>(remote);
    counts[0] += c.x, counts[1] += c.y, counts[2] += c.z, counts[3] += c.w;
    if (!by_mass) continue;
    const uint4 l = *reinterpret_cast<const uint4*>(remote + kBins);
    const uint4 h = *reinterpret_cast<const uint4*>(remote + 2 * kBins);
    masses[0] += l.x + (static_cast<u64>(h.x) << 32);
    masses[1] += l.y + (static_cast<u64>(h.y) << 32);
    masses[2] += l.z + (static_cast<u64>(h.z) << 32);
    masses[3] += l.w + (static_cast<u64>(h.w) << 32);
  }
  u64 count = 0, sum = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (!by_mass) masses[j] = counts[j];
    count += counts[j];
    sum += masses[j];
  }
  const ulonglong2 total = BlockScan(shared, count, sum);
  if (share >= 0) amount = static_cast<u64>(ceil(static_cast<double>(share) * total.y));
  amount = ::max(amount, 1ull);
  if (threadIdx.x == 0) shared.found.bin = -1;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (sum < amount && sum + masses[j] >= amount) {
      shared.found = {static_cast<int>(threadIdx.x) * 4 + j, counts[j],
                      static_cast<unsigned>(count), amount, sum};
    }
    count += counts[j];
    sum += masses[j];
  }
  cluster.sync();  // the histograms may be cleared again
}

// The interval of values in one bin of the first histogram: its bins fall as values rise.
__device__ inline void NarrowToDistanceBin(const Row& row, int bin, u64& low, u64& high) {
  // The lowest value whose bin is at most `bin`, near where exact arithmetic would have it.
  auto first_of = [&](int bin) {
    unsigned a = OrderedBits(-FLT_MAX), b = OrderedBits(row.max);
    const float distance = static_cast<float>(bin + 1) / kBinsPerUnit;
    const float slack = (fabsf(row.max) + distance) * 0x1p-22f;
    const float below = row.max - distance - slack, above = row.max - distance + slack;
    if (row.DistanceBin(below) > bin) a = OrderedBits(below);
    if (row.DistanceBin(above) <= bin) b = ::min(b, OrderedBits(above));
    while (a < b) {
      const unsigned middle = a + (b - a) / 2;
      row.DistanceBin(FromOrderedBits(middle)) <= bin ? b = middle : a = middle + 1;
    }
    return static_cast<u64>(a) << 32;
  };
  low = ::max(low, first_of(bin));
  if (bin > 0) high = ::min(high, first_of(bin - 1) - 1);
}

// Brings the ranks in [low, high] to the leader's list, sorted.
__device__ inline unsigned GatherList(Row& row, u64 low, u64 high) {
  auto cluster = cg::this_cluster();
  if (threadIdx.x == 0) row.shared.list_size = 0;
  cluster.sync();
  unsigned* size = cluster.map_shared_rank(&row.shared.list_size, 0);
  u64* list = cluster.map_shared_rank(row.shared.list, 0);
  row.ForEach([&](float x, int token) {
    const u64 rank = Rank(x, token);
    if (rank >= low && rank <= high) list[atomicAdd(size, 1)] = rank;
  });
  cluster.sync();
  if (cluster.block_rank() == 0) SortList(row.shared.list, row.shared.list_size);
  return row.shared.list_size;
}

// The leader's value, to every thread.
__device__ inline u64 Broadcast(Row& row, u64 value) {
  auto cluster = cg::this_cluster();
  u64* word = &row.shared.broadcast[row.next_broadcast];
  row.next_broadcast ^= 1;
  if (cluster.block_rank() == 0 && threadIdx.x == 0) *word = value;
  cluster.sync();
  return *cluster.map_shared_rank(word, 0);
}

// Among ranks of at least `floor`, which leaves out -inf: the shortest prefix whose count reaches
// `count`, or with share >= 0 whose mass reaches that share of all their mass. If all of them do
// not reach it, the rank is `floor`.
static __device__ __noinline__ Selection Select(Row& row, u64 floor, u64 count, float share) {
  const RowShared& shared = row.shared;
  const bool by_mass = share >= 0;
  u64 low = floor, high = Rank(row.max, 0), amount = count, above = 0;
  bool complete = false;
  for (int shift = -1;;) {
    FindBin(row, low, high, shift, by_mass, shift < 0 ? share : -1.0f, amount - above);
    const auto found = shared.found;
    if (found.bin < 0) return {floor, false, 0};
    if (shift < 0) {
      amount = found.amount;
      NarrowToDistanceBin(row, found.bin, low, high);
      complete = found.count_above + found.count <= kListSize;
    } else {
      high -= static_cast<u64>(found.bin) << shift;
      low = ::max(low, high - ((1ull << shift) - 1));
    }
    if (complete) {
      high = ~0ull;
      break;
    }
    above += found.above;
    if (found.count <= kListSize) break;
    shift = ::max(0, 64 - __clzll(high - low) - 11);
  }
  const unsigned size = GatherList(row, low, high);
  u64 rank = 0;
  if (cg::this_cluster().block_rank() == 0) {
    rank = by_mass ? ListNucleus(row, size, 0, -1.0f, amount - above)
                   : shared.list[::min(amount - above, static_cast<u64>(size)) - 1];
  }
  return {Broadcast(row, rank), complete, size};
}

}  // namespace dlcore::kernels

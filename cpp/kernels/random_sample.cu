// One token per row by the Gumbel trick: the argmax of logit / temperature + noise over the tokens
// that min-p, top-k and top-p leave.
//
// Rows without a cut take one pass, split across blocks. A row with a cut takes one block: a
// histogram of the distances from the maximum bounds the candidates, they are collected in shared
// memory (rows with too many stay in memory), and exact thresholds are found among them digit by
// digit. Probabilities are summed as integers, so the result does not depend on the order.

#include <algorithm>

#include "kernels/argmax_state.cuh"
#include "kernels/counter_rng.cuh"
#include "kernels/kernels.h"

namespace dlcore::kernels {
namespace {

constexpr int kSplitThreads = 256;
constexpr int kThreads = 1024;
constexpr int kBins = 2048;
constexpr float kBinsPerNat = 64.0f;  // of the first histogram; its last bin takes the rest
constexpr int kMaxCandidates = 8192;
constexpr float kUnit = 0x1p40f;           // integer mass of the most likely token
constexpr uint32_t kMaxKey = 0x7f800000u;  // of a token that cannot be drawn

using u64 = unsigned long long;

__device__ __forceinline__ bool IsCut(const dlk_sampling& a, int row) {
  return a.temperature[row] > 0 &&
         ((a.top_k[row] > 0 && a.top_k[row] < a.vocab) || a.top_p[row] < 1 || a.min_p[row] > 0);
}

template <class Logit>
__global__ void __launch_bounds__(kSplitThreads) DrawUncut(const dlk_sampling a) {
  AllowNext();
  WaitForPrevious();
  const int row = blockIdx.y;
  if (IsCut(a, row)) return;
  const Logit* logits = static_cast<const Logit*>(a.logits) + static_cast<int64_t>(row) * a.vocab;
  const float temperature = a.temperature[row];
  const bool greedy = temperature <= 0;
  const RowKeys keys(a.seeds[row], a.positions[row]);
  u64 best = 0;
  for (int i = (blockIdx.x * kSplitThreads + threadIdx.x) * 8; i < a.vocab;
       i += gridDim.x * kSplitThreads * 8) {
    float v[8];
    LoadLogits(logits + i, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float score = greedy ? v[j] : v[j] / temperature + keys.Gumbel(i + j);
      best = max(best, ArgmaxKey(score, i + j));
    }
  }
  best = BlockMax<kSplitThreads>(best);
  auto* state = static_cast<RowState*>(a.workspace) + row;
  if (threadIdx.x == 0 && MergeArgmax(state, gridDim.x, &best)) a.tokens[row] = ArgmaxIndex(best);
}

struct Shared {
  u64 bins[kBins];
  unsigned counts[kBins];
  uint32_t keys[kMaxCandidates];
  int tokens[kMaxCandidates];
  u64 warp_sums[kThreads / kWarpSize];
  u64 before;  // of the bin that was found
  int bin;
  int num_candidates;
};

// A key is the distance from the row's maximum as float bits: small keys are likely tokens.
template <class Logit>
struct Row {
  const Logit* logits;
  int vocab;
  float temperature, max, min_p;

  __device__ float Scaled(int token) const {
    return static_cast<float>(logits[token]) / temperature;
  }
  __device__ uint32_t Key(float scaled) const {
    const float distance = max - scaled;
    const bool drawable = distance >= 0 && (min_p <= 0 || expf(-distance) >= min_p);
    return drawable ? __float_as_uint(distance) : kMaxKey;  // NaN is not drawable
  }
  template <class Visit>
  __device__ void ForEach(const Visit& visit) const {
    for (int i = threadIdx.x * 8; i < vocab; i += kThreads * 8) {
      float v[8];
      LoadLogits(logits + i, v);
#pragma unroll
      for (int j = 0; j < 8; ++j) visit(Key(v[j] / temperature), i + j);
    }
  }
};

__device__ __forceinline__ u64 Mass(uint32_t key) {
  return key >= kMaxKey ? 0 : static_cast<u64>(expf(-__uint_as_float(key)) * kUnit);
}

__device__ void ClearBins(Shared& shared) {
  for (int i = threadIdx.x; i < kBins; i += kThreads) shared.bins[i] = 0;
  __syncthreads();
}

// The first bin at which the running total reaches `target` (the last, if none does), and the
// total before it.
__device__ void FindBin(Shared& shared, u64 target) {
  __syncthreads();
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const u64 first = shared.bins[2 * threadIdx.x], second = shared.bins[2 * threadIdx.x + 1];
  u64 scan = first + second;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const u64 other = __shfl_up_sync(kFullMask, scan, offset);
    if (lane >= offset) scan += other;
  }
  if (lane == kWarpSize - 1) shared.warp_sums[warp] = scan;
  __syncthreads();
  u64 before = scan - first - second;
  for (int w = 0; w < warp; ++w) before += shared.warp_sums[w];
  const bool is_last = threadIdx.x == kThreads - 1;
  if (before < target && before + first >= target) {
    shared.bin = 2 * threadIdx.x;
    shared.before = before;
  } else if (before + first < target && (before + first + second >= target || is_last)) {
    shared.bin = 2 * threadIdx.x + 1;
    shared.before = before + first;
  }
  __syncthreads();
}

struct Found {
  uint32_t value;
  u64 before;  // weight of smaller values
};

// The smallest value at which the weight of values up to it reaches target >= 1. for_each visits
// (value, weight) pairs; values are below `limit`.
template <class ForEach>
__device__ Found SelectValue(Shared& shared, uint32_t limit, u64 target, const ForEach& for_each) {
  uint32_t low = 0;
  u64 before = 0;
  int shift = 32 - __clz(limit) - 11;
  shift = shift > 0 ? shift : 0;
  while (true) {
    ClearBins(shared);
    for_each([&](uint32_t value, u64 weight) {
      const uint32_t bin = (value - low) >> shift;
      if (value >= low && bin < kBins && weight > 0) atomicAdd(&shared.bins[bin], weight);
    });
    FindBin(shared, target - before);
    low += static_cast<uint32_t>(shared.bin) << shift;
    before += shared.before;
    if (shift == 0) return {low, before};
    shift = shift > 11 ? shift - 11 : 0;
  }
}

template <class Logit>
__global__ void __launch_bounds__(kThreads, 1) DrawCut(const dlk_sampling a) {
  extern __shared__ __align__(16) char shared_bytes[];
  auto& shared = *reinterpret_cast<Shared*>(shared_bytes);
  AllowNext();
  WaitForPrevious();
  const int row_index = blockIdx.x;
  if (!IsCut(a, row_index)) return;
  Row<Logit> row{static_cast<const Logit*>(a.logits) + static_cast<int64_t>(row_index) * a.vocab,
                 a.vocab, a.temperature[row_index], 0, a.min_p[row_index]};
  // The largest logit is the largest after the division, too.
  u64 best = 0;
  for (int i = threadIdx.x * 8; i < row.vocab; i += kThreads * 8) {
    float v[8];
    LoadLogits(row.logits + i, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) best = max(best, ArgmaxKey(v[j], i + j));
  }
  row.max = row.Scaled(ArgmaxIndex(BlockMax<kThreads>(best)));

  // Bound the candidates: by count for top-k, by mass for top-p alone.
  const int top_k = a.top_k[row_index];
  const bool by_count = top_k > 0 && top_k < a.vocab;
  const float top_p = a.top_p[row_index];
  const bool by_mass = !by_count && top_p < 1;
  for (int i = threadIdx.x; i < kBins; i += kThreads) shared.counts[i] = 0;
  __syncthreads();
  auto bin_of = [](uint32_t key) {
    return static_cast<int>(fminf(__uint_as_float(key) * kBinsPerNat, kBins - 1.0f));
  };
  u64 own_mass = 0;
  row.ForEach([&](uint32_t key, int) {
    if (key >= kMaxKey) return;
    if (by_mass) own_mass += Mass(key);
    atomicAdd(&shared.counts[bin_of(key)], 1);
  });
  auto block_sum = [&](u64 v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(kFullMask, v, offset);
    __syncthreads();
    if (threadIdx.x % kWarpSize == 0) shared.warp_sums[threadIdx.x / kWarpSize] = v;
    __syncthreads();
    v = 0;
    for (int w = 0; w < kThreads / kWarpSize; ++w) v += shared.warp_sums[w];
    __syncthreads();
    return v;
  };
  u64 mass = block_sum(own_mass);
  // Rounded up: the smallest set that reaches top_p of the mass, and never an empty one.
  auto mass_target = [&] {
    const auto wanted =
        static_cast<u64>(ceil(static_cast<double>(top_p) * static_cast<double>(mass)));
    return top_p < 1 ? min(max(wanted, 1ull), mass) : mass;
  };
  __syncthreads();
  auto find_bin = [&](u64 target, const auto& weight) {
    for (int i = threadIdx.x; i < kBins; i += kThreads) {
      shared.bins[i] = shared.counts[i] * weight(i);
    }
    FindBin(shared, target);
    return shared.bin;
  };
  auto edge_mass = [](int bin) {
    return bin < kBins ? Mass(__float_as_uint(bin / kBinsPerNat)) : 0;
  };
  int first_bin = 0, last_bin = kBins - 1;  // bins before the first are kept whole
  if (by_count) last_bin = find_bin(top_k, [](int) { return 1ull; });
  if (by_mass) {
    // Weighed at their far edges, tokens up to the last bin still reach the target; at their near
    // edges, those before the first do not.
    last_bin = find_bin(mass_target(), [&](int bin) { return edge_mass(bin + 1); });
    u64 own_count = 0;
    for (int i = threadIdx.x; i <= last_bin; i += kThreads) own_count += shared.counts[i];
    const bool all_fit = block_sum(own_count) <= kMaxCandidates;
    if (!all_fit) first_bin = find_bin(mass_target(), edge_mass);
  }

  if (threadIdx.x == 0) shared.num_candidates = 0;
  __syncthreads();
  own_mass = 0;
  row.ForEach([&](uint32_t key, int token) {
    if (key >= kMaxKey || bin_of(key) > last_bin) return;
    if (bin_of(key) < first_bin) {
      own_mass += Mass(key);
      return;
    }
    const int i = atomicAdd(&shared.num_candidates, 1);
    if (i < kMaxCandidates) shared.keys[i] = key, shared.tokens[i] = token;
  });
  __syncthreads();
  const int num_candidates = shared.num_candidates;
  const bool listed = num_candidates <= kMaxCandidates;
  const u64 sure_mass = first_bin > 0 && listed ? block_sum(own_mass) : 0;  // not in the list
  auto for_each = [&](const auto& visit) {  // all candidates: (key, token)
    if (!listed) {
      row.ForEach(visit);
      return;
    }
    for (int i = threadIdx.x; i < num_candidates; i += kThreads) {
      visit(shared.keys[i], shared.tokens[i]);
    }
  };

  uint32_t last_key = kMaxKey - 1;  // of the kept tokens
  if (by_count) {
    const Found found = SelectValue(shared, kMaxKey, top_k, [&](const auto& add) {
      for_each([&](uint32_t key, int) { add(key, key < kMaxKey ? 1ull : 0ull); });
    });
    last_key = min(found.value, last_key);
    own_mass = 0;
    for_each([&](uint32_t key, int) { own_mass += key <= last_key ? Mass(key) : 0; });
    mass = block_sum(own_mass);
  }
  int last_tie = a.vocab;  // of the tokens with that key, by index
  if (top_p < 1) {
    const u64 target = mass_target() - sure_mass;
    const Found found = SelectValue(shared, kMaxKey, target, [&](const auto& add) {
      for_each([&](uint32_t key, int) { add(key, key <= last_key ? Mass(key) : 0); });
    });
    last_key = min(found.value, last_key);
    const u64 tie_mass = Mass(last_key);
    if (tie_mass > 0) {
      const u64 num_ties = (target - found.before + tie_mass - 1) / tie_mass;
      last_tie = SelectValue(shared, a.vocab, num_ties, [&](const auto& add) {
                   for_each([&](uint32_t key, int token) { add(token, key == last_key ? 1 : 0); });
                 }).value;
    }
  }

  const RowKeys keys(a.seeds[row_index], a.positions[row_index]);
  best = 0;
  auto draw = [&](uint32_t key, int token) {
    if (key > last_key || (key == last_key && token > last_tie)) return;
    best = max(best, ArgmaxKey(row.Scaled(token) + keys.Gumbel(token), token));
  };
  if (sure_mass > 0) {
    row.ForEach(draw);
  } else {
    for_each(draw);
  }
  best = BlockMax<kThreads>(best);
  if (threadIdx.x == 0) a.tokens[row_index] = ArgmaxIndex(best);
}

template <class Logit>
cudaError_t Run(const dlk_sampling& a, cudaStream_t stream) {
  const int splits = std::clamp(1024 / a.num_rows, 1, CeilDiv(a.vocab, kSplitThreads * 8));
  const cudaError_t error =
      Launch(DrawUncut<Logit>, dim3(splits, a.num_rows), kSplitThreads, 0, stream, a);
  if (error != cudaSuccess) return error;
  return Launch(DrawCut<Logit>, a.num_rows, kThreads, sizeof(Shared), stream, a);
}

}  // namespace
}  // namespace dlcore::kernels

int dlk_random_sample(const dlk_sampling* args, cudaStream_t stream) {
  using namespace dlcore::kernels;
  if (args->vocab % 8 != 0) return cudaErrorInvalidValue;
  if (args->num_rows == 0) return cudaSuccess;
  return args->logits_are_bf16 ? Run<bf16>(*args, stream) : Run<float>(*args, stream);
}

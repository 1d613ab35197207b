// One draw per row from its cut distribution: min-p, then top-k, then top-p, then Gumbel noise, all
// in one kernel. A cluster of blocks holds a row in shared memory, so logits are read once.
//
// Semantics are those of python/dlcore/ops/sample.py and logits_rules.py; the noise has the same
// bits as counter_rng.py. Noise is computed in full only where a cheap bound says it could win.

#include "kernels/kernels.h"
#include "kernels/row_select.cuh"

namespace dlcore::kernels {
namespace {

constexpr int kNumBias = 5, kBiasOffset = 11, kMasksOffset = 12;  // of step_layout.h's header
constexpr int kPromptSeenBit = 1 << 30;

__device__ __forceinline__ unsigned Mix(unsigned x) {
  x ^= x >> 16;
  x *= 0x7FEB352Du;
  x ^= x >> 15;
  x *= 0x846CA68Bu;
  return x ^ (x >> 16);
}

struct Noise {
  static constexpr unsigned kGolden = 0x9E3779B9u;
  unsigned k1, k2;

  __device__ Noise(int64_t seed, int position) {
    const auto low = static_cast<unsigned>(seed);
    const auto high = static_cast<unsigned>(static_cast<uint64_t>(seed) >> 32);
    k1 = Mix(Mix(Mix(low) ^ high) + kGolden * (static_cast<unsigned>(position) + 1));
    k2 = Mix(k1 ^ kGolden);
  }
  __device__ float Bits(int token) const {
    return __uint2float_rn(Mix(Mix((static_cast<unsigned>(token) * kGolden) ^ k1) + k2));
  }
  // False only if x plus its noise is below `score`: noise -log(E) with E >= u reaches score - x
  // only where u <= exp(x - score).
  __device__ static bool MayReach(float score, float x, float bits) {
    return bits <= 4299262263.0f * __expf(x - score);  // 2^32 and a little
  }
  __device__ static float Gumbel(float bits) {
    const float u = fminf((bits + 0.5f) * 0x1p-32f, 1.0f - 0x1p-24f);
    return -logf(-log1pf(-u));
  }
};

__device__ __forceinline__ float4 Load4(const float* p) {
  return *reinterpret_cast<const float4*>(p);
}
__device__ __forceinline__ float4 Load4(const bf16* p) {
  const uint2 v = *reinterpret_cast<const uint2*>(p);
  const float2 a = ToFloat2(v.x), b = ToFloat2(v.y);
  return make_float4(a.x, a.y, b.x, b.y);
}
__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(bf16 x) { return __bfloat162float(x); }

// The row's logits as they are.
template <class Logit>
__device__ void LoadRow(const Row& row, const Logit* logits, int vocab) {
#pragma unroll 4
  for (int i = threadIdx.x * 4; i < row.slice; i += kRowThreads * 4) {
    const int token = row.first_token + i;
    float4 v = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    if (vocab % 4 == 0) {
      if (token < vocab) v = Load4(logits + token);
    } else {
      if (token < vocab) v.x = ToFloat(logits[token]);
      if (token + 1 < vocab) v.y = ToFloat(logits[token + 1]);
      if (token + 2 < vocab) v.z = ToFloat(logits[token + 2]);
      if (token + 3 < vocab) v.w = ToFloat(logits[token + 3]);
    }
    *reinterpret_cast<float4*>(row.values + i) = v;
  }
}

// Replaces each of the thread's own values, and finds the row's maximum.
template <class Change>
__device__ void ChangeValues(Row& row, Change change) {
  constexpr unsigned kNan = 0xffffffffu;
  unsigned largest = 0;
  auto keep = [&](float x) {  // adding 0 makes -0 0
    const bool is_nan = x != x;
    x = is_nan ? -INFINITY : x + 0.0f;
    largest = ::max(largest, is_nan ? kNan : OrderedBits(x));
    return x;
  };
  for (int i = threadIdx.x * 4; i < row.slice; i += kRowThreads * 4) {
    auto* p = reinterpret_cast<float4*>(row.values + i);
    const int token = row.first_token + i;
    float4 v = *p;
    v.x = keep(change(v.x, token)), v.y = keep(change(v.y, token + 1));
    v.z = keep(change(v.z, token + 2)), v.w = keep(change(v.w, token + 3));
    *p = v;
  }
  largest = static_cast<unsigned>(row.ReduceMax(largest));
  row.has_nan = largest == kNan;
  row.max = FromOrderedBits(largest);
}

// Masks, bias and penalties of one row.
struct Rules {
  const int32_t* mask = nullptr;    // words of allowed tokens, or null
  const int32_t* counts = nullptr;  // [vocab], or null: no penalty
  float repetition, frequency, presence;
  int vocab;

  __device__ Rules(const dlk_draw& a, int row, int slot) : vocab(a.vocab) {
    const int mask_row = a.mask_rows[row];
    if (mask_row >= 0) {
      mask =
          a.arena + a.arena[kMasksOffset] + static_cast<int64_t>(mask_row) * ((a.vocab + 31) / 32);
    }
    repetition = a.repetition_penalty[row];
    frequency = a.frequency_penalty[row];
    presence = a.presence_penalty[row];
    if (repetition != 1.0f || frequency != 0.0f || presence != 0.0f) {
      counts = a.token_counts + static_cast<int64_t>(slot) * a.vocab;
    }
  }
  __device__ static void AddBias(const dlk_draw& a, int row_index, const Row& row) {
    const int32_t* entries = a.arena + a.arena[kBiasOffset];
    const int num_bias = a.arena[kNumBias];
    __syncthreads();
    for (int e = threadIdx.x; e < num_bias; e += kRowThreads) {
      const int i = entries[3 * e + 1] - row.first_token;
      if (entries[3 * e] == row_index && i >= 0 && i < row.slice) {
        atomicAdd(row.values + i, __int_as_float(entries[3 * e + 2]));
      }
    }
    __syncthreads();
  }
  __device__ float Apply(float x, int token) const {
    if (token >= vocab) return x;
    if (mask != nullptr && (mask[token / 32] >> (token % 32) & 1) == 0) return -INFINITY;
    if (counts == nullptr) return x;
    const int count = counts[token];
    if (count == 0) return x;
    const int outputs = count & (kPromptSeenBit - 1);
    x = x > 0 ? __fdiv_rn(x, repetition) : __fmul_rn(x, repetition);
    x = __fsub_rn(x, __fmul_rn(frequency, static_cast<float>(outputs)));
    return outputs > 0 ? __fsub_rn(x, presence) : x;
  }
};

// The lowest rank that may be drawn.
__device__ u64 CutDistribution(Row& row, int top_k, float top_p, float min_p) {
  u64 lowest = static_cast<u64>(OrderedBits(-FLT_MAX)) << 32;
  if (min_p > 0) {
    lowest = ::max(lowest, static_cast<u64>(OrderedBits(row.max + logf(min_p))) << 32);
  }
  if (top_k <= 0) return top_p < 1 ? Select(row, lowest, 0, fmaxf(top_p, 0.0f)).rank : lowest;
  const Selection selected = Select(row, lowest, top_k, -1.0f);
  const u64 kept = ::max(lowest, TiesOf(selected.rank));
  if (top_p >= 1) return kept;
  if (!selected.complete) return Select(row, kept, 0, fmaxf(top_p, 0.0f)).rank;
  u64 rank = 0;
  if (cg::this_cluster().block_rank() == 0) {
    rank = ListNucleus(row, selected.list_size, kept, fmaxf(top_p, 0.0f), 0);
  }
  return Broadcast(row, rank);
}

__device__ bool IsCut(const dlk_draw& a, int row) {
  const int top_k = a.top_k[row];
  return (top_k > 0 && top_k < a.vocab) || a.top_p[row] < 1 || a.min_p[row] > 0;
}

// The block's best score among ranks of at least `lowest`. Its best so far spares almost all
// other tokens the logarithms.
__device__ u64 DrawBest(const Row& row, u64 lowest, const Noise& noise) {
  unsigned* shared_best = &row.shared.best_score;
  if (threadIdx.x == 0) *shared_best = OrderedBits(-FLT_MAX);
  __syncthreads();
  const float lowest_value = ValueOf(lowest);
  u64 best = 0;
  for (int i = threadIdx.x * 4; i < row.slice; i += kRowThreads * 4) {
    const float4 v = *reinterpret_cast<const float4*>(row.values + i);
    const float x[4] = {v.x, v.y, v.z, v.w};
    const float score = FromOrderedBits(*static_cast<volatile unsigned*>(shared_best));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int token = row.first_token + i + j;
      if (x[j] < lowest_value) continue;
      const float bits = noise.Bits(token);
      if (!Noise::MayReach(score, x[j], bits) || Rank(x[j], token) < lowest) continue;
      const u64 key = Rank(x[j] + Noise::Gumbel(bits) + 0.0f, token);
      best = ::max(best, key);
      atomicMax(shared_best, static_cast<unsigned>(key >> 32));
    }
  }
  return best;
}

// The best rank of a row that nothing cuts, in one pass over memory; the row is not kept. ~0: the
// row has a NaN.
template <class Logit>
__device__ u64 DrawUncut(Row& row, const Logit* logits, int vocab, float temperature,
                         const Noise& noise) {
  constexpr int kBatch = 5;  // loads of a thread at once
  constexpr int kStride = kRowThreads * 4;
  const bool greedy = temperature <= 0;
  unsigned* shared_best = &row.shared.best_score;
  if (threadIdx.x == 0) *shared_best = OrderedBits(-FLT_MAX);
  __syncthreads();
  u64 best = 0;
  const int end = min(row.first_token + row.slice, vocab);
  for (int i = row.first_token + threadIdx.x * 4; i < end; i += kBatch * kStride) {
    float4 v[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      v[b] = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
      if (i + b * kStride < end) v[b] = Load4(logits + i + b * kStride);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const float x[4] = {v[b].x, v[b].y, v[b].z, v[b].w};
      const float score = FromOrderedBits(*static_cast<volatile unsigned*>(shared_best));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int token = i + b * kStride + j;
        const float scaled = (greedy ? x[j] : __fdiv_rn(x[j], temperature)) + 0.0f;
        if (scaled != scaled) best = ~0ull;
        if (!(scaled >= -FLT_MAX)) continue;
        if (greedy) {
          best = ::max(best, Rank(scaled, token));
          continue;
        }
        const float bits = noise.Bits(token);
        if (!Noise::MayReach(score, scaled, bits)) continue;
        const u64 key = Rank(scaled + Noise::Gumbel(bits) + 0.0f, token);
        best = ::max(best, key);
        atomicMax(shared_best, static_cast<unsigned>(key >> 32));
      }
    }
  }
  return best;
}

template <class Logit, bool kRules>
__global__ void __cluster_dims__(kRowBlocks, 1, 1) __launch_bounds__(kRowThreads, 2)
    Sample(const dlk_draw a) {
  extern __shared__ __align__(16) char shared_bytes[];
  AllowNext();
  WaitForPrevious();
  const int index = blockIdx.y;
  const int slot = a.row_slots[index];
  const bool is_leader = cg::this_cluster().block_rank() == 0 && threadIdx.x == 0;
  if (slot < 0) {
    if (is_leader) a.sampled[index] = -1;
    return;
  }
  Row row(shared_bytes, a.vocab);
  const auto* logits = static_cast<const Logit*>(a.logits) + static_cast<int64_t>(index) * a.vocab;
  const float temperature = a.temperature[index];
  const bool greedy = temperature <= 0;
  if (!kRules && a.vocab % 4 == 0 && (greedy || !IsCut(a, index))) {
    const Noise noise(a.seeds[index], a.sample_positions[index]);
    const u64 best = row.ReduceMax(DrawUncut(row, logits, a.vocab, temperature, noise));
    if (is_leader) {
      const int token = best == 0 || best == ~0ull ? 0 : TokenOf(best);
      a.sampled[index] = token;
      a.last_tokens[slot] = token;
    }
    cg::this_cluster().sync();  // blocks still read each other's memory
    return;
  }
  LoadRow(row, logits, a.vocab);
  if constexpr (kRules) {
    Rules::AddBias(a, index, row);
    const Rules rules(a, index, slot);
    ChangeValues(row, [&](float x, int token) {
      x = rules.Apply(x, token);
      return greedy ? x : __fdiv_rn(x, temperature);
    });
  } else {
    ChangeValues(row, [&](float x, int) { return greedy ? x : __fdiv_rn(x, temperature); });
  }

  u64 best = 0;  // stays 0 where nothing can be drawn, or the model is broken
  if (greedy && !row.has_nan) {
    row.ForEach([&](float x, int token) {
      if (x != -INFINITY) best = ::max(best, Rank(x, token));
    });
  } else if (!row.has_nan) {
    const u64 lowest = CutDistribution(row, a.top_k[index], a.top_p[index], a.min_p[index]);
    const Noise noise(a.seeds[index], a.sample_positions[index]);
    best = DrawBest(row, lowest, noise);
  }
  best = row.ReduceMax(best);
  if (is_leader) {
    const int token = best == 0 ? 0 : TokenOf(best);
    a.sampled[index] = best == 0 && kRules ? -1 : token;  // -1: nothing is allowed
    a.last_tokens[slot] = token;
    if (kRules) a.token_counts[static_cast<int64_t>(slot) * a.vocab + token] += 1;
  }
  cg::this_cluster().sync();  // blocks still read each other's memory
}

// Log-probabilities of the raw logits: of one token per row, its place, and the top ones.
template <class Logit>
__global__ void __cluster_dims__(kRowBlocks, 1, 1) __launch_bounds__(kRowThreads, 2)
    Logprobs(const dlk_logprobs a) {
  extern __shared__ __align__(16) char shared_bytes[];
  AllowNext();
  WaitForPrevious();
  const int index = blockIdx.y;
  const int target = a.target_tokens[index];
  const int token = target >= 0 ? target : a.sampled[index];
  int32_t* top_ids = a.top_ids + static_cast<int64_t>(index) * a.num_top;
  float* top_logprobs = a.top_logprobs + static_cast<int64_t>(index) * a.num_top;
  if (token < 0) return;  // padding
  Row row(shared_bytes, a.vocab);
  const auto* logits = static_cast<const Logit*>(a.logits) + static_cast<int64_t>(index) * a.vocab;
  LoadRow(row, logits, a.vocab);
  ChangeValues(row, [](float x, int) { return x; });
  u64 mass = 0, greater = 0;
  const float chosen = ToFloat(logits[token]) + 0.0f;
  row.ForEach([&](float x, int) {
    mass += row.Mass(x);
    greater += x > chosen;
  });
  mass = row.ReduceSum(mass);
  greater = row.ReduceSum(greater);
  const float log_sum = row.max + logf(static_cast<float>(mass) / kMassOne);
  const int wanted = min(a.num_top, a.vocab);
  unsigned size = 0;
  if (wanted > 0) {
    const u64 lowest = static_cast<u64>(OrderedBits(-FLT_MAX)) << 32;
    const Selection selected = Select(row, lowest, wanted, -1.0f);
    size = GatherList(row, selected.rank, ~0ull);
  }
  if (cg::this_cluster().block_rank() == 0) {
    for (int i = threadIdx.x; i < a.num_top; i += kRowThreads) {
      const bool exists = i < static_cast<int>(size);
      top_ids[i] = exists ? TokenOf(row.shared.list[i]) : -1;
      top_logprobs[i] = exists ? ValueOf(row.shared.list[i]) - log_sum : -INFINITY;
    }
    if (threadIdx.x == 0) {
      a.logprobs[index] = chosen - log_sum;
      a.ranks[index] = static_cast<int32_t>(greater) + 1;
    }
  }
  cg::this_cluster().sync();
}

}  // namespace
}  // namespace dlcore::kernels

int dlk_sample(const dlk_draw* args, cudaStream_t stream) {
  using namespace dlcore::kernels;
  const dlk_draw& a = *args;
  if (a.num_rows == 0) return cudaSuccess;
  auto* kernel = a.logits_are_bf16
                     ? (a.arena != nullptr ? Sample<bf16, true> : Sample<bf16, false>)
                     : (a.arena != nullptr ? Sample<float, true> : Sample<float, false>);
  return Launch(kernel, dim3(kRowBlocks, a.num_rows), kRowThreads, RowSharedBytes(a.vocab), stream,
                a);
}

int dlk_logprobs_of(const dlk_logprobs* args, cudaStream_t stream) {
  using namespace dlcore::kernels;
  const dlk_logprobs& a = *args;
  if (a.num_top > kListSize) return cudaErrorInvalidValue;
  if (a.num_rows == 0) return cudaSuccess;
  return Launch(a.logits_are_bf16 ? Logprobs<bf16> : Logprobs<float>, dim3(kRowBlocks, a.num_rows),
                kRowThreads, RowSharedBytes(a.vocab), stream, a);
}

#pragma once

#include "kernels/barrier.cuh"
#include "kernels/decode_tile.cuh"
#include "kernels/head_rotation.cuh"

// Where decode attention's queries come from: a kernel before made them, or they are still in the
// qkv projection. In the second case the warps that read a pair's queries norm and rotate them, and
// those that read the pair's last token also make its key and value and write them to the cache.
//
// Lane (g, t) = (lane / 4, lane % 4) gets query head g of a group: the values d = 32 j + 8 t .. of
// each j, so a value's partner in the rotation is in the same lane.

namespace dlcore::kernels {

// The key and value that this step adds to a pair, as the cache keeps them.
template <int kHeadDim, class Cache>
struct alignas(16) NewRows {
  Cache key[kHeadDim], value[kHeadDim];
};

// 8 values of it, from d = 8 * eighth, to shared memory and to the cache. is_value: 0 or 1; slot
// -1: is not written.
template <int kHeadDim, class Cache>
__device__ __forceinline__ void KeepRow(const DecodeParams& p, Cache* shared, int head, int slot,
                                        int is_value, const float (&v)[8], int eighth) {
  float inverse_scale = 1.0f;
  if constexpr (sizeof(Cache) == 1) {
    inverse_scale = 1.0f / p.a.kv_scales[is_value * p.a.num_kv_heads + head];
  }
  StoreCache(shared + eighth * 8, v, inverse_scale);
  if (slot < 0) return;
  const Cache* row = p.KeysAt<kHeadDim, Cache>(slot >> p.block_shift, head, slot);
  const int offset = is_value * p.ValueOffset<kHeadDim>() + eighth * 8;
  StoreCache(const_cast<Cache*>(row) + offset, v, inverse_scale);
}

// A warp's queries.
template <int kHeadDim, class Cache>
struct ReadyQuery {
  static constexpr bool kAddsToken = false;
  static constexpr int kVectors = kHeadDim / 32;
  struct Rows {  // where they lie
    const bf16* queries;
  };

  __device__ explicit ReadyQuery(const DecodeParams&) {}
  __device__ static Rows InMemory(const DecodeParams& p, int seq, int head, int) {
    const dlk_attention& a = p.a;
    const int token = a.query_start_loc != nullptr ? a.query_start_loc[seq] : seq;
    const int64_t row = static_cast<int64_t>(token) * a.num_q_heads + head * p.Group();
    return {static_cast<const bf16*>(a.q) + row * kHeadDim};
  }
  // Loads what depends on no kernel; then the rest.
  __device__ void LoadEarly(const Rows&) {}
  __device__ void Load(const DecodeParams& p, const Rows& rows, int, int, bool,
                       NewRows<kHeadDim, Cache>&, uint4 (&query)[kVectors]) const {
    const int lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
    const bf16* row = rows.queries + g * kHeadDim + 8 * t;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      query[j] = g < p.Group() ? CacheTraits<Cache>::ConvertQuery(Load16(row + 32 * j))
                               : make_uint4(0, 0, 0, 0);
    }
  }
};

// Row `group` of the lanes makes the key: the group has fewer than 8 heads. What they are made of
// comes from memory for a warp's first pair, by the shortest way; for later pairs through places of
// its ring, like the tokens after them, so that it need not wait for them.
template <int kHeadDim, class Cache>
struct ProjectedQuery {
  static constexpr bool kAddsToken = true;
  static constexpr int kVectors = kHeadDim / 32, kHalf = kVectors / 2;
  static constexpr int kRowBytes = kHeadDim * sizeof(bf16);
  static constexpr int kAngleBytes = kHeadDim * sizeof(float);
  struct Rows {
    const float* angles;
    const bf16 *queries, *key, *value;
  };

  uint4 weight[kVectors];
  float cosines[kHalf][8], sines[kHalf][8];

  __device__ explicit ProjectedQuery(const DecodeParams& p) {
    const int lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
    const void* norm = g < p.Group() ? p.tokens.q_weight : p.tokens.k_weight;
    if (norm == nullptr) return;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      weight[j] = Load16(static_cast<const bf16*>(norm) + 32 * j + 8 * t);
    }
  }
  __device__ static Rows InMemory(const DecodeParams& p, int seq, int head, int position) {
    const dlk_attention& a = p.a;
    const int num_heads = a.num_q_heads + 2 * a.num_kv_heads;
    const auto* heads =
        static_cast<const bf16*>(p.tokens.qkv) + static_cast<int64_t>(seq) * num_heads * kHeadDim;
    const bf16* key = heads + (a.num_q_heads + head) * kHeadDim;
    return {p.tokens.cos_sin + static_cast<int64_t>(position) * kHeadDim,
            heads + head * p.Group() * kHeadDim, key, key + a.num_kv_heads * kHeadDim};
  }
  __device__ static Rows At(const DecodeParams& p, const char* place) {
    const auto* heads = reinterpret_cast<const bf16*>(place + kAngleBytes);
    const bf16* key = heads + p.Group() * kHeadDim;
    return {reinterpret_cast<const float*>(place), heads, key, key + kHeadDim};
  }
  // By one thread: a copy to `place`, whose bytes complete `full`.
  __device__ static void Request(const DecodeParams& p, const Rows& rows, char* place,
                                 uint64_t* full) {
    const int query_bytes = p.Group() * kRowBytes;
    ArriveExpecting(full, kAngleBytes + query_bytes + 2 * kRowBytes);
    CopyBulk(place, rows.angles, kAngleBytes, full);
    place += kAngleBytes;
    CopyBulk(place, rows.queries, query_bytes, full);
    place += query_bytes;
    CopyBulk(place, rows.key, kRowBytes, full);
    CopyBulk(place + kRowBytes, rows.value, kRowBytes, full);
  }
  __device__ void LoadEarly(const Rows& rows) {
    const float* angles = rows.angles + threadIdx.x % 4 * 8;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      LoadFloats(angles + 32 * i, cosines[i]);
      LoadFloats(angles + kHeadDim / 2 + 32 * i, sines[i]);
    }
  }
  // Where adds_token, fills `new_rows`.
  __device__ void Load(const DecodeParams& p, const Rows& rows, int head, int slot, bool adds_token,
                       NewRows<kHeadDim, Cache>& new_rows, uint4 (&query)[kVectors]) const {
    const int lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
    const bool is_query = g < p.Group(), is_key = g == p.Group() && adds_token;
    const bool is_value = adds_token && lane < kHeadDim / 8;
    const bf16* row = (is_query ? rows.queries + g * kHeadDim : rows.key) + 8 * t;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) query[j] = Load16(row + 32 * j);
    const uint4 value = is_value ? Load16(rows.value + lane * 8) : make_uint4(0, 0, 0, 0);
    const float inverse_rms = p.tokens.q_weight != nullptr ? InverseRms(query, p.tokens.eps) : 1.0f;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      float low[8], high[8];
      Unpack8(query[i], low);
      Unpack8(query[i + kHalf], high);
      if (p.tokens.q_weight != nullptr) {
        NormScale(low, inverse_rms, weight[i]);
        NormScale(high, inverse_rms, weight[i + kHalf]);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float v = low[j];
        low[j] = Rotated(v, -high[j], cosines[i][j], sines[i][j]);
        high[j] = Rotated(high[j], v, cosines[i][j], sines[i][j]);
      }
      if (is_key) {
        KeepRow<kHeadDim>(p, new_rows.key, head, slot, 0, low, 4 * i + t);
        KeepRow<kHeadDim>(p, new_rows.key, head, slot, 0, high, 4 * (i + kHalf) + t);
      }
      const uint4 none = make_uint4(0, 0, 0, 0);
      query[i] = is_query ? CacheTraits<Cache>::ConvertQuery(Pack8(low)) : none;
      query[i + kHalf] = is_query ? CacheTraits<Cache>::ConvertQuery(Pack8(high)) : none;
    }
    if (!is_value) return;
    float v[8];
    Unpack8(value, v);
    KeepRow<kHeadDim>(p, new_rows.value, head, slot, 1, v, lane);
  }

 private:
  // As WarpSum over lanes of 8 values each adds up a head.
  __device__ static float InverseRms(const uint4 (&row)[kVectors], float eps) {
    float sums[kVectors];
#pragma unroll
    for (int j = 0; j < kVectors; ++j) sums[j] = SumSquares(row[j]);
#pragma unroll
    for (int stride = kHalf; stride > 0; stride /= 2) {
#pragma unroll
      for (int j = 0; j < stride; ++j) sums[j] += sums[j + stride];
    }
    return rsqrtf(WarpSum<4>(sums[0]) / kHeadDim + eps);
  }
};

// The same by the threads of a block: D / 8 of them hold one head, 8 values each.
template <int kHeadDim, class Cache>
struct ReadyHeads {
  static constexpr bool kAddsToken = false;
  static constexpr int kLanes = kHeadDim / 8;
  struct Prepared {};

  __device__ static void Prepare(const DecodeParams&, int, Prepared&) {}
  // query: rows of `pitch`
  __device__ static void Read(const DecodeParams& p, int seq, int head, bool, const Prepared&,
                              NewRows<kHeadDim, Cache>&, uint4* query, int pitch) {
    const dlk_attention& a = p.a;
    const int group = a.num_q_heads / a.num_kv_heads;
    const int token = a.query_start_loc != nullptr ? a.query_start_loc[seq] : seq;
    const int64_t first_head = static_cast<int64_t>(token) * a.num_q_heads + head * group;
    const auto* q = static_cast<const bf16*>(a.q) + first_head * kHeadDim;
    for (int e = threadIdx.x; e < group * kLanes; e += blockDim.x) {
      query[e / kLanes * pitch + e % kLanes] = CacheTraits<Cache>::ConvertQuery(Load16(q + e * 8));
    }
  }
};

template <int kHeadDim, class Cache>
struct ProjectedHeads {
  static constexpr bool kAddsToken = true;
  static constexpr int kLanes = kHeadDim / 8;
  static constexpr int kMaxThreads = kMaxGroup * kLanes;  // that take part

  // In shared memory, where each thread finds what it left before the previous kernel ended: in
  // registers it would push out the first tokens.
  struct Prepared {
    uint4 cosines[2][kMaxThreads], sines[2][kMaxThreads], weight[kMaxThreads];
    int slot[kMaxThreads];
  };

  // Reads what depends on no kernel.
  __device__ static void Prepare(const DecodeParams& p, int seq, Prepared& prepared) {
    const dlk_new_tokens& n = p.tokens;
    const int group = p.a.num_q_heads / p.a.num_kv_heads;
    if (!TakesPart(group)) return;
    const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    const float* angles =
        n.cos_sin + static_cast<int64_t>(n.positions[seq]) * kHeadDim + lane % (kLanes / 2) * 8;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      prepared.cosines[i][threadIdx.x] = Load16(angles + 4 * i);
      prepared.sines[i][threadIdx.x] = Load16(angles + kHeadDim / 2 + 4 * i);
    }
    const auto* norm = static_cast<const bf16*>(row < group ? n.q_weight : n.k_weight);
    if (norm != nullptr) prepared.weight[threadIdx.x] = Load16(norm + lane * 8);
    prepared.slot[threadIdx.x] = n.slot_mapping[seq];
  }
  __device__ static void Read(const DecodeParams& p, int seq, int head, bool adds_token,
                              const Prepared& prepared, NewRows<kHeadDim, Cache>& rows,
                              uint4* query, int pitch) {
    const dlk_attention& a = p.a;
    const int group = a.num_q_heads / a.num_kv_heads;
    if (!TakesPart(group)) return;
    const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    const int num_heads = a.num_q_heads + 2 * a.num_kv_heads;
    const auto* heads = static_cast<const bf16*>(p.tokens.qkv) +
                        static_cast<int64_t>(seq) * num_heads * kHeadDim + lane * 8;
    const int key_head = a.num_q_heads + head;
    const uint4 raw = Load16(heads + (row < group ? head * group + row : key_head) * kHeadDim);
    const bool is_key = row == group && adds_token, is_value = row == 0 && adds_token;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (is_value) value = Load16(heads + (key_head + a.num_kv_heads) * kHeadDim);
    float v[8], cosines[8], sines[8];
    Unpack8(raw, v);
    if (p.tokens.q_weight != nullptr) {
      NormLanes<kHeadDim>(v, prepared.weight[threadIdx.x], p.tokens.eps);
    }
    ToFloats(prepared.cosines[0][threadIdx.x], prepared.cosines[1][threadIdx.x], cosines);
    ToFloats(prepared.sines[0][threadIdx.x], prepared.sines[1][threadIdx.x], sines);
    RotateLanes<kHeadDim>(v, cosines, sines, lane);
    if (row < group) query[row * pitch + lane] = CacheTraits<Cache>::ConvertQuery(Pack8(v));
    const int slot = prepared.slot[threadIdx.x];
    if (is_key) KeepRow<kHeadDim>(p, rows.key, head, slot, 0, v, lane);
    if (!is_value) return;
    Unpack8(value, v);
    KeepRow<kHeadDim>(p, rows.value, head, slot, 1, v, lane);
  }

 private:
  // Whole warps: norm and rotation shuffle.
  __device__ static bool TakesPart(int group) {
    return static_cast<int>(threadIdx.x) / kWarpSize * kWarpSize < (group + 1) * kLanes;
  }
  __device__ static void ToFloats(uint4 a, uint4 b, float (&v)[8]) {
    const uint32_t words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = __uint_as_float(words[i]);
  }
};

}  // namespace dlcore::kernels

// Causal paged attention for sequences with several query tokens, in a batch of any mix.
//
// A block takes 128 query rows of one KV head: a row is a (token, query head of the group) pair, so
// short chunks still fill the tensor cores. One warp brings tiles of 128 keys and values through
// the block table; two warpgroups of 64 rows each multiply. Within a warpgroup the next tile's
// Q K^T runs before this tile's P V in the tensor cores' queue, so that its softmax overlaps P V.
//
// The grid covers every tile that the buckets of tokens and sequences allow; which sequence a block
// serves is read on the device, and surplus blocks leave. Tiles with the longest context go first.

#include "kernels/kernels.h"
#include "kernels/tensor_map.cuh"
#include "kernels/wgmma.cuh"

namespace dlcore::kernels {
namespace {

constexpr int kHeadDim = 128;
constexpr int kRows = 128;    // of queries, a block
constexpr int kTokens = 128;  // of keys and values, a tile
constexpr int kStages = 2;
constexpr int kConsumers = 256;               // two warpgroups
constexpr int kThreads = kConsumers + 128;    // and the producer's
constexpr int kColumnBytes = 128 * kTokens;   // 64 values of every row of a tile
constexpr int kTileBytes = 2 * kColumnBytes;  // both columns
static_assert(kRows == kTokens);

struct Params {
  dlk_attention a;
  int block_shift;  // block_size = 1 << block_shift
  int min_query;
};

struct alignas(1024) Shared {
  char q[kTileBytes];
  char k[kStages][kTileBytes];
  char v[kStages][kTileBytes];
  uint64_t k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  int seq, first_query;
};

// What a block works on.
struct Work {
  int kv_head, group;
  int query_start, num_queries;  // the sequence's tokens in the batch
  int first_query;               // of this tile, within the sequence
  int len;                       // of the context, this step's tokens included
  int num_tiles;                 // of keys that the tile's last query sees
  const int32_t* table;

  __device__ int Position(int row) const {  // of a row's token in the context
    return len - num_queries + first_query + row / group;
  }
};

// Lanes of one warp find the sequence that holds tile `tile`, counted from the batch's end.
__device__ void FindTile(const Params& p, int tile, int queries_per_tile, Shared& shared) {
  const int lane = threadIdx.x % kWarpSize;
  int found = -1, first_query = 0;
  for (int end = p.a.num_seqs; end > 0 && found < 0; end -= kWarpSize) {
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
    if (holders != 0) {
      const int holder = __ffs(holders) - 1;
      const int index = tile - __shfl_sync(kFullMask, scan - tiles, holder);
      found = end - 1 - holder;
      first_query = (__shfl_sync(kFullMask, tiles, holder) - 1 - index) * queries_per_tile;
    }
    tile -= __shfl_sync(kFullMask, scan, kWarpSize - 1);
  }
  if (lane == 0) {
    shared.seq = found;
    shared.first_query = first_query;
  }
}

// The producer warp. Tiles come last first: those that need the causal mask lead.
__device__ void Produce(const Params& p, const CUtensorMap* cache, const Work& work,
                        Shared& shared) {
  const int lane = threadIdx.x % kWarpSize;
  const int block_size = p.a.block_size;
  const int boxes = kTokens >> p.block_shift;  // of one column of a tile
  const int last_block = (work.len - 1) >> p.block_shift;
  for (int i = 0; i < work.num_tiles; ++i) {
    const int stage = i % kStages, parity = (i / kStages & 1) ^ 1;
    const int first_token = (work.num_tiles - 1 - i) * kTokens;
    const int box = lane >> 1, column = lane & 1;
    int row = 0;
    if (box < boxes) {
      // Past the context any block of it will do: those scores are masked.
      const int index = min((first_token >> p.block_shift) + box, last_block);
      row = (work.table[index] * 2 * p.a.num_kv_heads + work.kv_head) << p.block_shift;
    }
    const int offset = column * kColumnBytes + box * block_size * 128;
    Wait(&shared.k_empty[stage], parity);
    if (lane == 0) ArriveExpecting(&shared.k_full[stage], kTileBytes);
    __syncwarp();
    if (box < boxes) {
      CopyBox(shared.k[stage] + offset, cache, row, column * 64, &shared.k_full[stage]);
    }
    Wait(&shared.v_empty[stage], parity);
    if (lane == 0) ArriveExpecting(&shared.v_full[stage], kTileBytes);
    __syncwarp();
    if (box < boxes) {
      CopyBox(shared.v[stage] + offset, cache, row + (p.a.num_kv_heads << p.block_shift),
              column * 64, &shared.v_full[stage]);
    }
  }
}

__device__ __forceinline__ int SwizzledOffset(int row, int chunk) {  // of 16 bytes in a tile
  return (chunk / 8) * kColumnBytes + row * 128 + ((chunk % 8) ^ (row % 8)) * 16;
}

__device__ __forceinline__ void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void SyncConsumers() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
}

__device__ void LoadQueries(const Params& p, const Work& work, Shared& shared) {
  const auto* q = static_cast<const bf16*>(p.a.q);
  for (int e = threadIdx.x; e < kRows * 16; e += kConsumers) {
    const int row = e / 16, chunk = e % 16;
    const int query = work.first_query + row / work.group;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (query < work.num_queries && row / work.group < kRows / work.group) {
      const int64_t head = static_cast<int64_t>(work.query_start + query) * p.a.num_q_heads +
                           work.kv_head * work.group + row % work.group;
      v = Load16(q + head * kHeadDim + chunk * 8);
    }
    Store16(shared.q + SwizzledOffset(row, chunk), v);
  }
  FenceAsyncProxy();
  SyncConsumers();
}

// The cache past the context may hold anything, NaN included; its weight is 0, so make it 0.
__device__ void ClearValuesPast(int num_valid, char* values) {
  for (int e = threadIdx.x; e < (kTokens - num_valid) * 16; e += kConsumers) {
    Store16(values + SwizzledOffset(num_valid + e / 16, e % 16), make_uint4(0, 0, 0, 0));
  }
  FenceAsyncProxy();
  SyncConsumers();
}

// 64 rows of queries. A thread holds two of them, g and g + 8 of its warp's 16.
struct Consumer {
  float s[64], o[64];
  uint32_t weights[8][4];  // P in bf16, as the A operand of 8 products
  float max[2], sum[2], shrink[2];

  __device__ void MultiplyKeys(const char* q, const char* k) {
    const uint64_t a = DescriptorKMajor(SharedAddress(q));
    const uint64_t b = DescriptorKMajor(SharedAddress(k));
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int step = (i / 4) * (kColumnBytes >> 4) + (i % 4) * 2;
      WgmmaShared(s, a + step, b + step, i > 0);
    }
    WgmmaCommit();
  }
  __device__ void MultiplyValues(const char* v) {
    const uint64_t b = DescriptorMnMajor(SharedAddress(v), kColumnBytes);
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < 8; ++i) WgmmaRegisters(o, weights[i], b + i * (2048 >> 4));
    WgmmaCommit();
  }
  // visible[i]: how many of the tile's tokens row i sees.
  __device__ void Softmax(float scale, bool masked, const int (&visible)[2]) {
    const int t = threadIdx.x % 4;
    if (masked) {
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        const int token = (i / 4) * 8 + 2 * t + i % 2;
        if (token >= visible[i / 2 % 2]) s[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float m = max[row];
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        m = fmaxf(m, fmaxf(s[4 * j + 2 * row], s[4 * j + 2 * row + 1]));
      }
      m = fmaxf(m, __shfl_xor_sync(kFullMask, m, 1));
      m = fmaxf(m, __shfl_xor_sync(kFullMask, m, 2));
      const float offset = m == -INFINITY ? 0.0f : m * scale;
      shrink[row] = exp2f(max[row] * scale - offset);
      max[row] = m;
      float total = 0;
#pragma unroll
      for (int j = 0; j < 16; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& x = s[4 * j + 2 * row + c];
          x = exp2f(x * scale - offset);
          total += x;
        }
      }
      sum[row] = sum[row] * shrink[row] + total;
    }
  }
  __device__ void PackWeights() {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) weights[i][j] = PackBf16(s[8 * i + 2 * j], s[8 * i + 2 * j + 1]);
    }
  }
  __device__ void Shrink() {
#pragma unroll
    for (int i = 0; i < 64; ++i) o[i] *= shrink[i / 2 % 2];
  }
};

__device__ void Consume(const Params& p, const Work& work, Shared& shared) {
  const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / kWarpSize % 4;
  const int lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
  const int first_row = warpgroup * 64;
  const int rows[2] = {first_row + warp * 16 + g, first_row + warp * 16 + g + 8};
  const int positions[2] = {work.Position(rows[0]), work.Position(rows[1])};
  const int first_position = work.Position(first_row);
  const float scale = p.a.scale * 1.44269504f;  // exponentials in base 2

  LoadQueries(p, work, shared);
  const char* q = shared.q + first_row * 128;
  auto token_of = [&](int i) { return (work.num_tiles - 1 - i) * kTokens; };
  auto parity_of = [](int i) { return i / kStages & 1; };
  Consumer c;
#pragma unroll
  for (int i = 0; i < 64; ++i) c.o[i] = 0;
  c.max[0] = c.max[1] = -INFINITY;
  c.sum[0] = c.sum[1] = 0;
  auto softmax = [&](int i) {
    const int first_token = token_of(i);
    const int visible[2] = {positions[0] + 1 - first_token, positions[1] + 1 - first_token};
    c.Softmax(scale, first_token + kTokens - 1 > first_position, visible);
  };

  Wait(&shared.k_full[0], 0);
  c.MultiplyKeys(q, shared.k[0]);
  WgmmaWait<0>();
  if (lane == 0) Arrive(&shared.k_empty[0]);
  softmax(0);
  c.PackWeights();
  if (token_of(0) + kTokens > work.len) {
    Wait(&shared.v_full[0], 0);
    ClearValuesPast(work.len - token_of(0), shared.v[0]);
  }
  const int last = work.num_tiles - 1;
  for (int i = 0; i < last; ++i) {
    const int stage = i % kStages, next = i + 1, next_stage = next % kStages;
    Wait(&shared.k_full[next_stage], parity_of(next));
    c.MultiplyKeys(q, shared.k[next_stage]);
    Wait(&shared.v_full[stage], parity_of(i));
    c.MultiplyValues(shared.v[stage]);
    WgmmaWait<1>();
    if (lane == 0) Arrive(&shared.k_empty[next_stage]);
    softmax(next);
    WgmmaWait<0>();
    if (lane == 0) Arrive(&shared.v_empty[stage]);
    c.Shrink();
    c.PackWeights();
  }
  Wait(&shared.v_full[last % kStages], parity_of(last));
  c.MultiplyValues(shared.v[last % kStages]);
  WgmmaWait<0>();

#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float sum = c.sum[row];
    sum += __shfl_xor_sync(kFullMask, sum, 1);
    sum += __shfl_xor_sync(kFullMask, sum, 2);
    const int query = work.first_query + rows[row] / work.group;
    if (query >= work.num_queries || rows[row] / work.group >= kRows / work.group) continue;
    const int64_t head = static_cast<int64_t>(work.query_start + query) * p.a.num_q_heads +
                         work.kv_head * work.group + rows[row] % work.group;
    auto* out = reinterpret_cast<uint32_t*>(static_cast<bf16*>(p.a.out) + head * kHeadDim);
    const float inverse = 1.0f / sum;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      out[4 * j + t] = PackBf16(c.o[4 * j + 2 * row] * inverse, c.o[4 * j + 2 * row + 1] * inverse);
    }
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    PrefillAttention(const Params p, const __grid_constant__ CUtensorMap cache) {
  extern __shared__ __align__(1024) char shared_bytes[];
  auto& shared =
      *reinterpret_cast<Shared*>((reinterpret_cast<uintptr_t>(shared_bytes) + 1023) / 1024 * 1024);
  AllowNext();
  const int group = p.a.num_q_heads / p.a.num_kv_heads;
  const int queries_per_tile = kRows / group;
  if (threadIdx.x < kWarpSize) FindTile(p, blockIdx.x, queries_per_tile, shared);
  if (threadIdx.x == kWarpSize) {
    for (int i = 0; i < kStages; ++i) {
      InitBarrier(&shared.k_full[i], 1);
      InitBarrier(&shared.v_full[i], 1);
      InitBarrier(&shared.k_empty[i], kConsumers / kWarpSize);
      InitBarrier(&shared.v_empty[i], kConsumers / kWarpSize);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  const int seq = shared.seq;
  if (seq < 0 && blockIdx.x + blockIdx.y > 0) return;  // the first always waits, for the chain
  WaitForPrevious();
  if (seq < 0) return;

  Work work;
  work.kv_head = blockIdx.y;
  work.group = group;
  work.query_start = p.a.query_start_loc[seq];
  work.num_queries = p.a.query_start_loc[seq + 1] - work.query_start;
  work.first_query = shared.first_query;
  work.len = p.a.seq_lens[seq];
  const int last_query = min(work.num_queries, work.first_query + queries_per_tile) - 1;
  work.num_tiles = (work.len - work.num_queries + last_query) / kTokens + 1;
  const int slot = p.a.seq_slots != nullptr ? p.a.seq_slots[seq] : seq;
  work.table = p.a.block_tables + static_cast<int64_t>(slot) * p.a.max_blocks;
  if (threadIdx.x >= kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x / kWarpSize == kConsumers / kWarpSize) Produce(p, &cache, work, shared);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    Consume(p, work, shared);
  }
}

}  // namespace
}  // namespace dlcore::kernels

int dlk_prefill_attention(const dlk_attention* args, int min_query, cudaStream_t stream) {
  using namespace dlcore::kernels;
  const dlk_attention& a = *args;
  if (a.head_dim != kHeadDim || a.num_q_heads % a.num_kv_heads != 0 || a.kv_scales != nullptr ||
      a.query_start_loc == nullptr || a.num_q_heads / a.num_kv_heads > kRows || a.block_size < 16 ||
      a.block_size > kTokens || (a.block_size & (a.block_size - 1)) != 0) {
    return cudaErrorInvalidValue;
  }
  if (a.num_seqs == 0 || a.num_tokens == 0) return cudaSuccess;
  Params p{a, 0, min_query};
  while (1 << p.block_shift < a.block_size) ++p.block_shift;
  CUtensorMap cache;
  const uint64_t rows = static_cast<uint64_t>(a.num_blocks) * 2 * a.num_kv_heads * a.block_size;
  const cudaError_t error = EncodeTensorMap(&cache, a.kv_cache, rows, kHeadDim, a.block_size);
  if (error != cudaSuccess) return error;
  const int queries_per_tile = kRows / (a.num_q_heads / a.num_kv_heads);
  const dim3 grid(a.num_tokens / queries_per_tile + a.num_seqs, a.num_kv_heads);
  return Launch(PrefillAttention, grid, kThreads, sizeof(Shared) + 1024, stream, p, cache);
}

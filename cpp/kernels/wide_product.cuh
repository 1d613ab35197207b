#pragma once

#include <algorithm>

#include "kernels/cluster.cuh"
#include "kernels/tensor_map.cuh"
#include "kernels/wgmma.cuh"

// x W^T for hundreds of tokens and more: bound by the tensor cores, and by the power they draw.
//
// A block multiplies 128 tokens with 256 rows of W, 64 tokens to a warpgroup, so that each product
// reads as few bytes of shared memory as wgmma allows. The two blocks of a cluster take
// neighbouring tiles of tokens and the same rows of W, of which each brings half to both. One
// thread keeps a ring of tiles of 64 values of k full; it goes on with the next tile of outputs
// while the others finish theirs.
//
// Each cluster of a fixed grid takes every num_clusters-th tile. Tiles go in groups of tokens that
// fit into L2, through all rows of W before the next group.
//
// What becomes of a tile's sums is a class Finish:
//   kOutRows, kStages, kBuffers   outputs of a tile's rows; of the ring; boxes of a warpgroup
//   struct Params                 its arguments
//   Finish(product, params, shared)
//   Begin(tile)                   before the tile's products
//   Meanwhile(tile)               beside the first of them
//   End(sums, tile)               after them
//   Done()                        after the last tile

namespace dlcore::kernels::wide {

inline constexpr int kTileK = 64;
inline constexpr int kRowBytes = kTileK * 2;
inline constexpr int kTokens = 128;  // of a block's tile
inline constexpr int kRows = 256;    // of W in it
inline constexpr int kTokenBytes = kTokens * kRowBytes;
inline constexpr int kStageBytes = kTokenBytes + kRows * kRowBytes;
inline constexpr int kBoxBytes = 64 * kRowBytes;  // 64 tokens, 64 outputs
inline constexpr int kCluster = 2;
inline constexpr int kWarpgroups = kTokens / 64;
inline constexpr int kConsumers = kWarpgroups * 128;
inline constexpr int kThreads = kConsumers + 128;

using Sums = float[kRows / 2];  // of a thread: two rows of 64 x 256 outputs

struct Product {
  int num_tokens, n, k;        // n: outputs
  int share_stride;            // rows of W between the halves of a tile's rows
  int token_tiles, row_tiles;  // of a cluster's outputs
  int group;                   // token tiles that share a sweep through W
  const float* squares;        // of x's rows, [num_pieces, T] or null
  int num_pieces;
  float eps;
};
struct Operands {
  CUtensorMap x, weight;
};

struct Tile {
  int token;  // this block's first
  int rows;   // the number of its tile of rows
};
__device__ __forceinline__ Tile FindTile(const Product& p, int index) {
  const int sweep = index / (p.group * p.row_tiles), first = sweep * p.group;
  const int tokens = min(p.group, p.token_tiles - first);
  const int rest = index - first * p.row_tiles;
  const int token_tile = first + rest % tokens;
  return {(token_tile * kCluster + static_cast<int>(ClusterRank())) * kTokens, rest / tokens};
}

// The first of this thread's two rows of sums among the tile's tokens (the second is 8 further);
// the first of its columns.
__device__ __forceinline__ int FirstRow() {
  return threadIdx.x / kWarpSize * 16 + threadIdx.x % kWarpSize / 4;
}
__device__ __forceinline__ int FirstColumn() { return threadIdx.x % 4 * 2; }

// What x's rows are scaled with: 1 / rms where x is to be normalised, else 1.
struct RowScales {
  float values[2] = {1.0f, 1.0f};

  // The four lanes of a row share its pieces.
  __device__ __forceinline__ void Load(const Product& p, int token) {
    if (p.squares == nullptr) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* squares = p.squares + min(token + half * 8, p.num_tokens - 1);
      float sum = 0;
      for (int piece = threadIdx.x % 4; piece < p.num_pieces; piece += 4) {
        sum += squares[static_cast<int64_t>(piece) * p.num_tokens];
      }
      values[half] = rsqrtf(WarpSum<4>(sum) / p.k + p.eps);
    }
  }
};

// A warpgroup's boxes of 64 tokens by 64 outputs, on their way out by the copy engine.
template <int kBuffers>
class Boxes {
 public:
  __device__ Boxes(char* memory, int group)
      : memory_(memory), group_(group), leads_(threadIdx.x % 128 == 0) {}

  __device__ __forceinline__ char* operator[](int i) const {
    return memory_ + i % kBuffers * kBoxBytes;
  }
  __device__ __forceinline__ bool leads() const { return leads_; }

  __device__ __forceinline__ void SyncWarpgroup() const {
    asm volatile("bar.sync %0, 128;" ::"r"(1 + group_) : "memory");
  }
  // Waits until at most kPending of the boxes sent are still being read.
  template <int kPending>
  __device__ __forceinline__ void WaitUntilRead() const {
    if (leads_) WaitForStoresToRead<kPending>();
    SyncWarpgroup();
  }
  // Before the block ends.
  __device__ __forceinline__ void Flush() const {
    if (leads_) WaitForStoresToRead<0>();
  }
  // To the map's rows from the tile's on, after all threads have written box i.
  __device__ __forceinline__ void Send(const CUtensorMap* map, const Tile& tile, int column,
                                       int i) const {
    FenceForCopyEngine();
    SyncWarpgroup();
    if (!leads_) return;
    StoreBox(map, tile.token + group_ * 64, column, (*this)[i]);
    CommitStores();
  }
  // The place in box i of this thread's j-th pair of columns, in its row `half`.
  __device__ __forceinline__ uint32_t* Pair(int i, int j, int half) const {
    const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
    const int row = threadIdx.x / kWarpSize % 4 * 16 + g + half * 8;
    return reinterpret_cast<uint32_t*>((*this)[i] + row * kRowBytes + ((j ^ g) << 4) + t * 4);
  }

 private:
  char* memory_;
  int group_;
  bool leads_;
};

// Calls visit(j, row's half, sums' index) for a thread's pairs of columns 64 i + 8 j + FirstColumn.
template <class Visit>
__device__ __forceinline__ void ForEachPair(int i, Visit visit) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) visit(j, half, i * 32 + j * 4 + half * 2);
  }
}

template <class Finish>
struct alignas(1024) Shared {
  char ring[Finish::kStages][kStageBytes];  // tokens, then rows of W
  char boxes[kWarpgroups][Finish::kBuffers * kBoxBytes];
  uint64_t full[Finish::kStages], empty[Finish::kStages];
  uint64_t arrived[kWarpgroups];  // of what Finish requests
};

// One thread: keeps the ring full.
template <class Finish>
__device__ __forceinline__ void Produce(const Product& p, const Operands& maps,
                                        Shared<Finish>& shared) {
  constexpr int kShare = kRows / kCluster;
  const int rank = ClusterRank();
  int stage = 0, parity = 1;
  for (int index = blockIdx.x / kCluster; index < p.token_tiles * p.row_tiles;
       index += gridDim.x / kCluster) {
    const Tile tile = FindTile(p, index);
    const int row = tile.rows * Finish::kOutRows + rank * p.share_stride;
    for (int k = 0; k < p.k; k += kTileK) {
      char* tokens = shared.ring[stage];
      uint64_t* full = &shared.full[stage];
      Wait(&shared.empty[stage], parity);
      ArriveExpecting(full, kStageBytes);
      CopyBoxToCluster(tokens + kTokenBytes + rank * kShare * kRowBytes, &maps.weight, row, k, full,
                       (1 << kCluster) - 1);
      CopyBox(tokens, &maps.x, tile.token, k, full);
      if (++stage == Finish::kStages) stage = 0, parity ^= 1;
    }
  }
}

// A warpgroup's walk through the ring. Addresses are kept ready: between products an instruction
// costs time and power.
template <int kStages>
struct Walk {
  const uint64_t tokens, rows;    // operands in the ring's first stage
  const uint32_t full, released;  // barriers: own, and one of block `lane` of the cluster
  const bool releases;
  int stage = 0, parity = 0;

  template <class Shared>
  __device__ Walk(Shared& shared, int group)
      : tokens(DescriptorKMajor(SharedAddress(shared.ring) + group * 64 * kRowBytes)),
        rows(DescriptorKMajor(SharedAddress(shared.ring) + kTokenBytes)),
        full(SharedAddress(shared.full)),
        released(AddressInBlock(shared.empty, threadIdx.x % kCluster)),
        releases(threadIdx.x % kWarpSize < kCluster) {}

  __device__ __forceinline__ void Release(int of_stage) const {
    if (releases) ArriveInCluster(released + of_stage * sizeof(uint64_t));
  }
  // 64 tokens times the tile's rows; `meanwhile` runs beside the first products.
  template <class Meanwhile>
  __device__ __forceinline__ void Multiply(Sums& sums, int num_k_tiles, Meanwhile meanwhile) {
    int previous = 0;
    for (int i = 0; i < num_k_tiles; ++i) {
      Wait(full + stage * sizeof(uint64_t), parity);
      const uint64_t a = tokens + stage * (kStageBytes >> 4);
      const uint64_t b = rows + stage * (kStageBytes >> 4);
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < kTileK / 16; ++step) {
        WgmmaShared(sums, a + step * 2, b + step * 2, i + step > 0);
      }
      WgmmaCommit();
      if (i == 0) meanwhile();
      WgmmaWait<1>();
      if (i > 0) Release(previous);
      previous = stage;
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
    WgmmaWait<0>();
    Release(previous);
  }
};

template <class Finish>
__device__ __forceinline__ void Consume(const Product& p, const typename Finish::Params& params,
                                        Shared<Finish>& shared) {
  const int group = Uniform(threadIdx.x / 128), num_k_tiles = CeilDiv(p.k, kTileK);
  Finish finish(p, params, shared.boxes[group], &shared.arrived[group], group);
  Walk<Finish::kStages> walk(shared, group);
  Sums sums;
  for (int index = blockIdx.x / kCluster; index < p.token_tiles * p.row_tiles;
       index += gridDim.x / kCluster) {
    const Tile tile = FindTile(p, index);
    finish.Begin(tile);
    walk.Multiply(sums, num_k_tiles, [&] { finish.Meanwhile(tile); });
    finish.End(sums, tile);
  }
  finish.Done();
}

template <class Finish>
__global__ void __launch_bounds__(kThreads, 1)
    WideProduct(const Product p, const __grid_constant__ Operands operands,
                const __grid_constant__ typename Finish::Params params) {
  extern __shared__ __align__(1024) char shared_bytes[];
  auto& shared = *reinterpret_cast<Shared<Finish>*>(
      (reinterpret_cast<uintptr_t>(shared_bytes) + 1023) / 1024 * 1024);
  AllowNext();
  if (threadIdx.x == 0) {
    for (uint64_t& full : shared.full) InitBarrier(&full, 1);
    for (uint64_t& empty : shared.empty) InitBarrier(&empty, kCluster * kConsumers / kWarpSize);
    for (uint64_t& arrived : shared.arrived) InitBarrier(&arrived, 1);
    FenceBarrierInit();
  }
  SyncCluster();
  WaitForPrevious();
  if (threadIdx.x >= kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == kConsumers) Produce<Finish>(p, operands, shared);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    Consume<Finish>(p, params, shared);
  }
  __syncwarp();
  SyncCluster();  // the other block may still write to this one's shared memory
}

// x: [num_tokens, k], weight: [weight_rows, k].
template <class Finish>
cudaError_t Run(Product p, const void* x, const void* weight, int weight_rows,
                const typename Finish::Params& params, cudaStream_t stream) {
  Operands operands;
  cudaError_t error = EncodeMatrix(&operands.x, x, p.num_tokens, p.k, kTokens);
  if (error != cudaSuccess) return error;
  error = EncodeMatrix(&operands.weight, weight, weight_rows, p.k, kRows / kCluster);
  if (error != cudaSuccess) return error;
  p.token_tiles = CeilDiv(p.num_tokens, kCluster * kTokens);
  p.row_tiles = CeilDiv(p.n, Finish::kOutRows);
  const int clusters = std::min(kMultiprocessors / kCluster, p.token_tiles * p.row_tiles);
  return LaunchClusters(WideProduct<Finish>, clusters * kCluster, dim3(kCluster), kThreads,
                        sizeof(Shared<Finish>) + 1024, stream, p, operands, params);
}

}  // namespace dlcore::kernels::wide

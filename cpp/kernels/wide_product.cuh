#pragma once

#include <algorithm>

#include "kernels/cluster.cuh"
#include "kernels/tensor_map.cuh"
#include "kernels/wgmma.cuh"

// x W^T for hundreds of tokens and more: bound by the tensor cores, and by the power they draw.
//
// A block multiplies 128 or 192 tokens with 256 rows of W, 64 tokens to a warpgroup, so that each
// product reads as few bytes of shared memory as wgmma allows; 192 are as many as there are
// registers for their sums. The two blocks of a cluster take neighbouring tiles of tokens and the
// same rows of W, of which each brings half to both.
//
// One thread keeps a ring of tiles of 64 values of k full. It is one of those that multiply: where
// it has released a stage it waits for the others, who are as far, and requests what comes next
// there, also of the next tile of outputs before this one is finished.
//
// Each cluster of a fixed grid takes every num_clusters-th tile. Tiles go in groups of tokens that
// fit into L2, through all rows of W before the next group.
//
// What becomes of a tile's sums is a class Finish (wide_finish.cuh has what it is made of):
//   kWarpgroups, kOutRows         of a block; outputs of a tile's rows
//   kStages, kBuffers             of the ring; boxes of a warpgroup
//   struct Params                 its arguments
//   Finish(product, params, shared)
//   Begin(tile)                   before the tile's products
//   Meanwhile(tile)               beside the first of them
//   End(sums, tile)               after them
//   Done()                        after the last tile

namespace dlcore::kernels::wide {

inline constexpr int kTileK = 64;
inline constexpr int kRowBytes = kTileK * 2;
inline constexpr int kRows = 256;                 // of W in a block's tile
inline constexpr int kBoxBytes = 64 * kRowBytes;  // 64 tokens, 64 outputs
inline constexpr int kCluster = 2;

template <class Finish>
struct Sizes {
  static constexpr int kTokens = Finish::kWarpgroups * 64;  // of a block's tile
  static constexpr int kThreads = Finish::kWarpgroups * 128;
  static constexpr int kTokenBytes = kTokens * kRowBytes;
  static constexpr int kStageBytes = kTokenBytes + kRows * kRowBytes;
};

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
template <int kTokens>
__device__ __forceinline__ Tile FindTile(const Product& p, int index) {
  const int sweep = index / (p.group * p.row_tiles), first = sweep * p.group;
  const int tokens = min(p.group, p.token_tiles - first);
  const int rest = index - first * p.row_tiles;
  const int token_tile = first + rest % tokens;
  return {(token_tile * kCluster + static_cast<int>(ClusterRank())) * kTokens, rest / tokens};
}

template <class Finish>
struct alignas(1024) Shared {
  char ring[Finish::kStages][Sizes<Finish>::kStageBytes];  // tokens, then rows of W
  char boxes[Finish::kWarpgroups][Finish::kBuffers * kBoxBytes];
  uint64_t full[Finish::kStages], empty[Finish::kStages];
  uint64_t arrived[Finish::kWarpgroups];  // of what Finish requests
};

// One thread: requests the operands of all its block's products, in their order.
template <class Finish>
class Loader {
 public:
  __device__ Loader(const Product& p, const Operands& maps, Shared<Finish>& shared)
      : p_(p), maps_(maps), shared_(shared) {}

  __device__ __forceinline__ void FillRing() {
    for (int stage = 0; stage < Finish::kStages; ++stage) Request(stage);
  }
  // What comes next, to the stage whose products of this parity all warps will release.
  __device__ __forceinline__ void Refill(int stage, int parity) {
    Wait(&shared_.empty[stage], parity);
    Request(stage);
  }

 private:
  using S = Sizes<Finish>;

  __device__ __forceinline__ void Request(int stage) {
    if (index_ >= num_tiles_) return;
    constexpr int kShare = kRows / kCluster;
    const int rank = ClusterRank();
    const int row = tile_.rows * Finish::kOutRows + rank * p_.share_stride;
    char* tokens = shared_.ring[stage];
    uint64_t* full = &shared_.full[stage];
    ArriveExpecting(full, S::kStageBytes);
    CopyBoxToCluster(tokens + S::kTokenBytes + rank * kShare * kRowBytes, &maps_.weight, row, k_,
                     full, (1 << kCluster) - 1);
    CopyBox(tokens, &maps_.x, tile_.token, k_, full);
    k_ += kTileK;
    if (k_ < p_.k) return;
    k_ = 0;
    index_ += gridDim.x / kCluster;
    if (index_ < num_tiles_) tile_ = FindTile<S::kTokens>(p_, index_);
  }

  const Product& p_;
  const Operands& maps_;
  Shared<Finish>& shared_;
  const int num_tiles_ = p_.token_tiles * p_.row_tiles;
  int index_ = blockIdx.x / kCluster, k_ = 0;
  Tile tile_ = FindTile<S::kTokens>(p_, index_);
};

// A warpgroup's walk through the ring. Addresses are kept ready: between products an instruction
// costs time and power.
template <class Finish>
struct Walk {
  using S = Sizes<Finish>;
  const uint64_t tokens, rows;    // operands in the ring's first stage
  const uint32_t full, released;  // barriers: own, and one of block `lane` of the cluster
  const bool releases;
  int stage = 0, parity = 0;

  __device__ Walk(Shared<Finish>& shared, int group)
      : tokens(DescriptorKMajor(SharedAddress(shared.ring) + group * 64 * kRowBytes)),
        rows(DescriptorKMajor(SharedAddress(shared.ring) + S::kTokenBytes)),
        full(SharedAddress(shared.full)),
        released(AddressInBlock(shared.empty, threadIdx.x % kCluster)),
        releases(threadIdx.x % kWarpSize < kCluster) {}

  // The stage of the products before those last begun; one thread has it filled again.
  __device__ __forceinline__ void Release(Loader<Finish>& loader) const {
    const bool wraps = stage == 0;
    const int of_stage = wraps ? Finish::kStages - 1 : stage - 1;
    if (releases) ArriveInCluster(released + of_stage * sizeof(uint64_t));
    if (threadIdx.x == 0) loader.Refill(of_stage, wraps ? parity ^ 1 : parity);
    __syncwarp();
  }
  __device__ __forceinline__ void NextStage() {
    if (++stage == Finish::kStages) stage = 0, parity ^= 1;
  }
  // 64 tokens times the tile's rows; `meanwhile` runs beside the first products.
  template <class Meanwhile>
  __device__ __forceinline__ void Multiply(Sums& sums, int num_k_tiles, Loader<Finish>& loader,
                                           Meanwhile meanwhile) {
    for (int i = 0; i < num_k_tiles; ++i) {
      Wait(full + stage * sizeof(uint64_t), parity);
      const uint64_t a = tokens + stage * (S::kStageBytes >> 4);
      const uint64_t b = rows + stage * (S::kStageBytes >> 4);
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < kTileK / 16; ++step) {
        WgmmaShared(sums, a + step * 2, b + step * 2, i + step > 0);
      }
      WgmmaCommit();
      if (i == 0) meanwhile();
      WgmmaWait<1>();
      if (i > 0) Release(loader);
      NextStage();
    }
    WgmmaWait<0>();
    Release(loader);
  }
};

template <class Finish>
__device__ __forceinline__ void MultiplyTiles(const Product& p, const Operands& maps,
                                              const typename Finish::Params& params,
                                              Shared<Finish>& shared) {
  const int group = Uniform(threadIdx.x / 128), num_k_tiles = CeilDiv(p.k, kTileK);
  Loader<Finish> loader(p, maps, shared);
  if (threadIdx.x == 0) loader.FillRing();
  __syncwarp();
  Finish finish(p, params, shared.boxes[group], &shared.arrived[group], group);
  Walk<Finish> walk(shared, group);
  Sums sums;
  for (int index = blockIdx.x / kCluster; index < p.token_tiles * p.row_tiles;
       index += gridDim.x / kCluster) {
    const Tile tile = FindTile<Sizes<Finish>::kTokens>(p, index);
    finish.Begin(tile);
    walk.Multiply(sums, num_k_tiles, loader, [&] { finish.Meanwhile(tile); });
    finish.End(sums, tile);
  }
  finish.Done();
}

template <class Finish>
__global__ void __launch_bounds__(Sizes<Finish>::kThreads, 1)
    WideProduct(const Product p, const __grid_constant__ Operands operands,
                const __grid_constant__ typename Finish::Params params) {
  extern __shared__ __align__(1024) char shared_bytes[];
  auto& shared = *reinterpret_cast<Shared<Finish>*>(
      (reinterpret_cast<uintptr_t>(shared_bytes) + 1023) / 1024 * 1024);
  AllowNext();
  if (threadIdx.x == 0) {
    constexpr int kWarps = kCluster * Sizes<Finish>::kThreads / kWarpSize;
    for (uint64_t& full : shared.full) InitBarrier(&full, 1);
    for (uint64_t& empty : shared.empty) InitBarrier(&empty, kWarps);
    for (uint64_t& arrived : shared.arrived) InitBarrier(&arrived, 1);
    FenceBarrierInit();
  }
  SyncCluster();
  WaitForPrevious();
  MultiplyTiles<Finish>(p, operands, params, shared);
  __syncwarp();
  SyncCluster();  // the other block may still write to this one's shared memory
}

// x: [num_tokens, k], weight: [weight_rows, k].
template <class Finish>
cudaError_t Run(Product p, const void* x, const void* weight, int weight_rows,
                const typename Finish::Params& params, cudaStream_t stream) {
  Operands operands;
  using S = Sizes<Finish>;
  cudaError_t error = EncodeMatrix(&operands.x, x, p.num_tokens, p.k, S::kTokens);
  if (error != cudaSuccess) return error;
  error = EncodeMatrix(&operands.weight, weight, weight_rows, p.k, kRows / kCluster);
  if (error != cudaSuccess) return error;
  p.token_tiles = CeilDiv(p.num_tokens, kCluster * S::kTokens);
  p.row_tiles = CeilDiv(p.n, Finish::kOutRows);
  const int clusters = std::min(kMultiprocessors / kCluster, p.token_tiles * p.row_tiles);
  return LaunchClusters(WideProduct<Finish>, clusters * kCluster, dim3(kCluster), S::kThreads,
                        sizeof(Shared<Finish>) + 1024, stream, p, operands, params);
}

}  // namespace dlcore::kernels::wide

// y = x W^T for hundreds of tokens and more: bound by the tensor cores, and by the power they draw.
//
// A block multiplies 128 tokens with 256 rows of W, 64 tokens to a warpgroup, so that each product
// reads as few bytes of shared memory as wgmma allows. The two blocks of a cluster take
// neighbouring tiles of tokens and the same rows of W, of which each brings half to both. One
// thread keeps a ring of tiles of 64 values of k full; it goes on with the next tile of outputs
// while the others write theirs.
//
// Each cluster of a fixed grid takes every num_clusters-th tile. Tiles go in groups of tokens that
// fit into L2, through all rows of W before the next group.
//
// On the way out SwiGLU, whose gates and ups are the two halves of a tile's rows and so of a
// thread's sums, or the residual, which the copy engine brings while the products run.
//
// RMSNorm between two products needs no pass of its own: the first writes its outputs also times
// the norm's weight, and each row's sum of squares in a piece of 256 outputs; the second, whose
// tokens those are, scales its sums by the row's 1 / rms.

#include <algorithm>

#include "kernels/cluster.cuh"
#include "kernels/kernels.h"
#include "kernels/tensor_map.cuh"
#include "kernels/wgmma.cuh"

namespace dlcore::kernels {
namespace {

constexpr int kTileK = 64;
constexpr int kRowBytes = kTileK * 2;
constexpr int kTokens = 128;  // of a block's tile
constexpr int kRows = 256;    // of W in it
constexpr int kTokenBytes = kTokens * kRowBytes;
constexpr int kStageBytes = kTokenBytes + kRows * kRowBytes;
constexpr int kBoxBytes = 64 * kRowBytes;  // 64 tokens, 64 outputs
constexpr int kCluster = 2;
constexpr int kWarpgroups = kTokens / 64;
constexpr int kConsumers = kWarpgroups * 128;
constexpr int kThreads = kConsumers + 128;
constexpr int kMultiprocessors = 132;

enum class Finish { kStore, kAddResidual, kSwiGlu };

struct Params {
  int num_tokens, n, k, num_k_tiles;
  int token_tiles, row_tiles;  // of a cluster's outputs
  int group;                   // token tiles that share a sweep through W
  const float* squares;        // of x's rows, [k / kRows, T] or null
  float eps;
  const bf16* norm_weight;  // [n] or null: then no scaled outputs, no squares of the outputs
  float* out_squares;       // [row_tiles, T]
};
struct Maps {
  CUtensorMap x, weight, out, residual, scaled;
};

struct TileIndex {
  int token, row;
};
__device__ __forceinline__ TileIndex FindTile(const Params& p, int index) {
  const int sweep = index / (p.group * p.row_tiles), first = sweep * p.group;
  const int tokens = min(p.group, p.token_tiles - first);
  const int rest = index - first * p.row_tiles;
  return {first + rest % tokens, rest / tokens};
}

template <Finish kFinish>
struct Kernel {
  static constexpr int kOutRows = kFinish == Finish::kSwiGlu ? kRows / 2 : kRows;
  static constexpr int kBoxes = kOutRows / 64;  // of a warpgroup's outputs
  // The residual of a tile comes while its products run: then every box has its own buffer.
  static constexpr int kBuffers = kFinish == Finish::kAddResidual ? kBoxes : 2;
  static constexpr int kStages = kFinish == Finish::kAddResidual ? 3 : 4;

  struct alignas(1024) Shared {
    char ring[kStages][kStageBytes];  // tokens, then rows of W
    char out[kWarpgroups][kBuffers][kBoxBytes];
    uint64_t full[kStages], empty[kStages], residual[kWarpgroups];
  };

  // One thread: keeps the ring full.
  static __device__ void Produce(const Params& p, const Maps& maps, Shared& shared) {
    constexpr int kShare = kRows / kCluster;
    const int rank = ClusterRank();
    int stage = 0, parity = 1;
    for (int index = blockIdx.x / kCluster; index < p.token_tiles * p.row_tiles;
         index += gridDim.x / kCluster) {
      const TileIndex tile = FindTile(p, index);
      const int token = (tile.token * kCluster + rank) * kTokens;
      const int row = tile.row * kOutRows + rank * (kFinish == Finish::kSwiGlu ? p.n : kShare);
      for (int i = 0; i < p.num_k_tiles; ++i) {
        char* tokens = shared.ring[stage];
        uint64_t* full = &shared.full[stage];
        Wait(&shared.empty[stage], parity);
        ArriveExpecting(full, kStageBytes);
        CopyBoxToCluster(tokens + kTokenBytes + rank * kShare * kRowBytes, &maps.weight, row,
                         i * kTileK, full, (1 << kCluster) - 1);
        CopyBox(tokens, &maps.x, token, i * kTileK, full);
        if (++stage == kStages) stage = 0, parity ^= 1;
      }
    }
  }

  // A warpgroup's walk through the ring. Addresses are kept ready: between products an instruction
  // costs time and power.
  struct Walk {
    const uint64_t tokens, rows;    // operands in the ring's first stage
    const uint32_t full, released;  // barriers: own, and one of block `lane` of the cluster
    const bool releases;
    int stage = 0, parity = 0;

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
    __device__ __forceinline__ void Multiply(float (&sums)[kRows / 2], int num_k_tiles,
                                             Meanwhile meanwhile) {
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

  static __device__ __forceinline__ void SyncWarpgroup(int group) {
    asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
  }

  // What a thread's two rows of outputs, 8 tokens apart, need and give beside their sums.
  struct Rows {
    float scales[2] = {1.0f, 1.0f};
    float squares[2] = {};

    // 1 / rms of x's rows `token` and `token` + 8. The four lanes of the rows share the pieces.
    __device__ __forceinline__ void LoadScales(const Params& p, int token) {
      if (p.squares == nullptr) return;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* squares = p.squares + min(token + half * 8, p.num_tokens - 1);
        float sum = 0;
        for (int piece = threadIdx.x % 4; piece < CeilDiv(p.k, kRows); piece += 4) {
          sum += squares[static_cast<int64_t>(piece) * p.num_tokens];
        }
        scales[half] = rsqrtf(WarpSum<4>(sum) / p.k + p.eps);
      }
    }
    __device__ __forceinline__ void StoreSquares(const Params& p, int token, int piece) const {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float sum = WarpSum<4>(squares[half]);
        if (threadIdx.x % 4 == 0 && token + half * 8 < p.num_tokens) {
          p.out_squares[static_cast<int64_t>(piece) * p.num_tokens + token + half * 8] = sum;
        }
      }
    }
  };

  // Calls visit(sum's index, row's half, word) for the pairs of outputs 64 i .. of the tile that
  // this thread holds; `word` is the pair's place in `box`, as the copy engine wants it.
  template <class Visit>
  static __device__ __forceinline__ void ForEachPair(int i, char* box, Visit visit) {
    const int g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
    char* row = box + (threadIdx.x / kWarpSize % 4 * 16 + g) * kRowBytes + t * 4;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        visit(i * 32 + j * 4 + half * 2, half,
              reinterpret_cast<uint32_t*>(row + half * 8 * kRowBytes + ((j ^ g) << 4)));
      }
    }
  }

  // Outputs 64 i .. of the tile to `box`. With a residual, `sums` become the outputs.
  static __device__ __forceinline__ void Pack(float (&sums)[kRows / 2], int i, char* box,
                                              Rows& rows) {
    ForEachPair(i, box, [&](int at, int half, uint32_t* out) {
      const float scale = rows.scales[half];
      float2 v = {sums[at] * scale, sums[at + 1] * scale};
      if constexpr (kFinish == Finish::kSwiGlu) {
        v.x = Silu(v.x) * (sums[at + kRows / 4] * scale);
        v.y = Silu(v.y) * (sums[at + kRows / 4 + 1] * scale);
      } else if constexpr (kFinish == Finish::kAddResidual) {
        const float2 residual = ToFloat2(*out);
        v.x += residual.x, v.y += residual.y;
      }
      const uint32_t pair = PackBf16(v.x, v.y);
      *out = pair;
      if constexpr (kFinish == Finish::kAddResidual) {
        v = ToFloat2(pair);  // what later layers will read, rounding included
        rows.squares[half] += v.x * v.x + v.y * v.y;
        sums[at] = v.x, sums[at + 1] = v.y;
      }
    });
  }
  // Outputs 64 i .. times the next norm's weight.
  static __device__ __forceinline__ void PackScaled(const float (&sums)[kRows / 2], int i,
                                                    char* box, const Params& p, int row) {
    const int column = row + i * 64 + threadIdx.x % 4 * 2;
    ForEachPair(i, box, [&](int at, int, uint32_t* out) {
      const int j = at / 4 % 8;
      const auto* weights = reinterpret_cast<const uint32_t*>(p.norm_weight + column + j * 8);
      const float2 w = column + j * 8 < p.n ? ToFloat2(__ldg(weights)) : float2{};
      *out = PackBf16(sums[at] * w.x, sums[at + 1] * w.y);
    });
  }

  // Writes the tile's outputs by boxes of 64, each with the copy engine as soon as it is packed.
  static __device__ __forceinline__ void Store(const Params& p, const Maps& maps,
                                               char (&boxes)[kBuffers][kBoxBytes], int group,
                                               float (&sums)[kRows / 2], Rows& rows, int token,
                                               int row) {
    const bool leads = threadIdx.x % 128 == 0;
    auto send = [&](const CUtensorMap* map, int i, char* box) {
      FenceForCopyEngine();
      SyncWarpgroup(group);
      if (leads) {
        StoreBox(map, token, row + i * 64, box);
        CommitStores();
      }
    };
    auto wait_for_buffer = [&] {
      if (leads) WaitForStoresToRead<kBuffers - 1>();
      SyncWarpgroup(group);
    };
#pragma unroll
    for (int i = 0; i < kBoxes; ++i) {
      char* box = boxes[i % kBuffers];
      if (i >= kBuffers) wait_for_buffer();
      Pack(sums, i, box, rows);
      send(&maps.out, i, box);
    }
    if constexpr (kFinish == Finish::kAddResidual) {
      if (p.norm_weight == nullptr) return;
#pragma unroll
      for (int i = 0; i < kBoxes; ++i) {
        wait_for_buffer();
        PackScaled(sums, i, boxes[i], p, row);
        send(&maps.scaled, i, boxes[i]);
      }
    }
  }

  static __device__ __forceinline__ void RequestResidual(const Maps& maps, uint64_t* full,
                                                         char (&boxes)[kBuffers][kBoxBytes],
                                                         int token, int row) {
    WaitForStoresToRead<0>();
    ArriveExpecting(full, kBoxes * kBoxBytes);
#pragma unroll
    for (int i = 0; i < kBoxes; ++i) CopyBox(boxes[i], &maps.residual, token, row + i * 64, full);
  }

  static __device__ void Consume(const Params& p, const Maps& maps, Shared& shared) {
    const int group = __shfl_sync(kFullMask, threadIdx.x / 128, 0);  // the same for all lanes
    const int token_of_tile = group * 64 + threadIdx.x / kWarpSize % 4 * 16 +
                              threadIdx.x % kWarpSize / 4;  // of this thread's first row
    const bool leads = threadIdx.x % 128 == 0;
    char(&boxes)[kBuffers][kBoxBytes] = shared.out[group];
    float sums[kRows / 2];
    Walk walk(shared, group);
    int residual_parity = 0;
    for (int index = blockIdx.x / kCluster; index < p.token_tiles * p.row_tiles;
         index += gridDim.x / kCluster) {
      const TileIndex tile = FindTile(p, index);
      const int first = (tile.token * kCluster + ClusterRank()) * kTokens;
      const int token = first + group * 64, row = tile.row * kOutRows;
      if (kFinish == Finish::kAddResidual && leads) {
        RequestResidual(maps, &shared.residual[group], boxes, token, row);
      }
      Rows rows;
      walk.Multiply(sums, p.num_k_tiles, [&] { rows.LoadScales(p, first + token_of_tile); });
      if constexpr (kFinish == Finish::kAddResidual) {
        Wait(&shared.residual[group], residual_parity);
        residual_parity ^= 1;
      } else {
        if (leads) WaitForStoresToRead<0>();
        SyncWarpgroup(group);
      }
      Store(p, maps, boxes, group, sums, rows, token, row);
      if (kFinish == Finish::kAddResidual && p.norm_weight != nullptr) {
        rows.StoreSquares(p, first + token_of_tile, tile.row);
      }
    }
    if (leads) WaitForStoresToRead<0>();
  }
};

template <class K>
__global__ void __launch_bounds__(kThreads, 1)
    WideLinear(const Params p, const __grid_constant__ Maps maps) {
  extern __shared__ __align__(1024) char shared_bytes[];
  auto& shared = *reinterpret_cast<typename K::Shared*>(
      (reinterpret_cast<uintptr_t>(shared_bytes) + 1023) / 1024 * 1024);
  AllowNext();
  if (threadIdx.x == 0) {
    for (uint64_t& full : shared.full) InitBarrier(&full, 1);
    for (uint64_t& empty : shared.empty) InitBarrier(&empty, kCluster * kConsumers / kWarpSize);
    for (uint64_t& residual : shared.residual) InitBarrier(&residual, 1);
    FenceBarrierInit();
  }
  SyncCluster();
  WaitForPrevious();
  if (threadIdx.x >= kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == kConsumers) K::Produce(p, maps, shared);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    K::Consume(p, maps, shared);
  }
  __syncwarp();
  SyncCluster();  // the other block may still write to this one's shared memory
}

template <Finish kFinish>
cudaError_t Run(const dlk_wide& a, cudaStream_t stream) {
  using K = Kernel<kFinish>;
  Maps maps{};
  const int rows = kFinish == Finish::kSwiGlu ? 2 * a.n : a.n;
  cudaError_t error = EncodeMatrix(&maps.x, a.x, a.num_tokens, a.k, kTokens);
  if (error != cudaSuccess) return error;
  error = EncodeMatrix(&maps.weight, a.weight, rows, a.k, kRows / kCluster);
  if (error != cudaSuccess) return error;
  error = EncodeMatrix(&maps.out, a.out, a.num_tokens, a.n, 64);
  if (error != cudaSuccess) return error;
  if (kFinish == Finish::kAddResidual) {
    error = EncodeMatrix(&maps.residual, a.residual, a.num_tokens, a.n, 64);
    if (error != cudaSuccess) return error;
  }
  if (a.norm_weight != nullptr) {
    error = EncodeMatrix(&maps.scaled, a.scaled, a.num_tokens, a.n, 64);
    if (error != cudaSuccess) return error;
  }
  Params p{};
  p.num_tokens = a.num_tokens, p.n = a.n, p.k = a.k;
  p.num_k_tiles = CeilDiv(a.k, kTileK);
  p.token_tiles = CeilDiv(a.num_tokens, kCluster * kTokens);
  p.row_tiles = CeilDiv(a.n, K::kOutRows);
  p.group = a.group;
  p.squares = a.squares, p.eps = a.eps;
  p.norm_weight = static_cast<const bf16*>(a.norm_weight), p.out_squares = a.out_squares;
  const int clusters = std::min(kMultiprocessors / kCluster, p.token_tiles * p.row_tiles);
  return LaunchClusters(WideLinear<K>, clusters * kCluster, dim3(kCluster), kThreads,
                        sizeof(typename K::Shared) + 1024, stream, p, maps);
}

}  // namespace
}  // namespace dlcore::kernels

int dlk_wide_linear(const dlk_wide* args, cudaStream_t stream) {
  using namespace dlcore::kernels;
  const dlk_wide& a = *args;
  if (a.num_tokens < 1 || a.n % 8 != 0 || a.k % 8 != 0 || a.group < 1 ||
      (a.swiglu && a.residual != nullptr) || (a.norm_weight != nullptr && a.residual == nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (a.swiglu) return Run<Finish::kSwiGlu>(a, stream);
  if (a.residual != nullptr) return Run<Finish::kAddResidual>(a, stream);
  return Run<Finish::kStore>(a, stream);
}

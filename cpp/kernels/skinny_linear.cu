// y = W x for up to 16 tokens: the time is that of reading W once.
//
// A block multiplies kRowTiles x 8 rows of W with the tokens. One warp requests its rows in
// chunks of 512 values of k with bulk copies into a ring of shared memory; each of eight others
// multiplies 64 of those values, and their sums meet at the end. The order of k inside a product
// is free as long as both operands agree, so a lane's 16 contiguous bytes of a row serve two
// mma.sync. W depends on no other kernel: it is requested before the previous one has ended, so in
// a chain of small layers memory is never idle.
//
// Fused: RMSNorm of x before (without a weight: 1/rms multiplies the sum on the way out), bias,
// residual or SwiGLU after.

#include <algorithm>

#include "kernels/barrier.cuh"
#include "kernels/kernels.h"
#include "kernels/mma.cuh"

namespace dlcore::kernels {
namespace {

constexpr int kTile = 8;  // tokens; two tiles are the rows of a product
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kUnit = 64;  // values of k a warp takes of a chunk
constexpr int kSteps = 2;  // of 32 values: 4 lanes x 16 bytes
constexpr int kChunk = kWarps * kUnit;
// Rows lie 64 bytes off a multiple of 128, so that two rows' lanes meet different banks.
constexpr int kRowPitch = kChunk * 2 + 64;

struct Params {
  const bf16* x;         // [T, K]
  const bf16* weight;    // [N, K]; SwiGLU: [2N, K], gates then ups
  const bf16* bias;      // [N] or null
  const bf16* residual;  // [T, N] or null
  void* out;             // [T, N]
  int num_tokens, n, k;
  float eps;
};

// Sums of one warp, before they meet those of the other warps.
template <int kRows, int kTokens>
struct Partials {
  float product[kWarps][kTokens][kRows + 1];
  float squares[kWarps][kTokens];

  __device__ float Product(int token, int row) const {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += product[w][token][row];
    return sum;
  }
  __device__ float InverseRms(int token, const Params& p) const {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += squares[w][token];
    return rsqrtf(sum / p.k + p.eps);
  }
};

// Chunks in flight, and (Depth) chunks whose x a warp holds in registers ahead of its products: one
// round trip to L2 then serves them all, and it is on the critical path of a chain of kernels. Few
// enough for the next kernels in line to be resident as well.
constexpr int MaxStages(int row_tiles) { return row_tiles == 1 ? 6 : row_tiles == 2 ? 4 : 2; }
constexpr int kMaxStages = 6;
constexpr int Depth(int row_tiles, int token_tiles) {
  return token_tiles == 1 ? MaxStages(row_tiles) : row_tiles == 1 ? 4 : 2;
}

struct Barriers {
  uint64_t full[kMaxStages], empty[kMaxStages];
};

// The producer warp: keeps the ring full. Row tile i: SwiGLU pairs a tile of gates with the same
// tile of ups.
template <int kRowTiles, bool kSwiGlu>
__device__ void RequestWeights(const Params& p, char* ring, Barriers& barriers, int num_stages) {
  constexpr int kRows = 8 * kRowTiles;
  constexpr int kOutRows = kSwiGlu ? kRows / 2 : kRows;
  const int lane = threadIdx.x % kWarpSize;
  const bool is_up = kSwiGlu && lane >= kOutRows;
  const int row =
      min(static_cast<int>(blockIdx.x) * kOutRows + (is_up ? lane - kOutRows : lane), p.n - 1);
  const bf16* weight = p.weight + static_cast<int64_t>(is_up ? row + p.n : row) * p.k;
  const int num_chunks = (p.k + kChunk - 1) / kChunk;
  const uint64_t policy = EvictFirst();
  int stage = 0, parity = 1;  // the first round finds every stage empty
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    if (chunk >= num_stages) Wait(&barriers.empty[stage], parity);
    const int bytes = min(kChunk, p.k - chunk * kChunk) * 2;
    if (lane == 0) ArriveExpecting(&barriers.full[stage], bytes * kRows);
    __syncwarp();
    if (lane < kRows) {
      CopyBulk(ring + (stage * kRows + lane) * kRowPitch, weight + chunk * kChunk, bytes,
               &barriers.full[stage], policy);
    }
    if (++stage == num_stages) stage = 0, parity ^= 1;
  }
}

template <int kRowTiles, int kTokenTiles, bool kSwiGlu, bool kNorm, class Out>
__global__ void __launch_bounds__(kThreads + kWarpSize, 2)
    SkinnyLinear(const Params p, int num_stages) {
  constexpr int kRows = 8 * kRowTiles;
  constexpr int kOutRows = kSwiGlu ? kRows / 2 : kRows;
  constexpr int kDepth = Depth(kRowTiles, kTokenTiles);
  constexpr int kTokens = kTile * kTokenTiles;
  // [num_stages][kRows] rows of weights; at the end, the warps' sums.
  extern __shared__ __align__(128) char shared_bytes[];
  __shared__ Barriers barriers;

  AllowNext();
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int g = lane / 4, t = lane % 4;
  const int num_chunks = (p.k + kChunk - 1) / kChunk;
  if (threadIdx.x == 0) {
    for (int i = 0; i < num_stages; ++i) {
      InitBarrier(&barriers.full[i], 1);
      InitBarrier(&barriers.empty[i], kWarps);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  const bool is_producer = warp == kWarps;
  if (is_producer) RequestWeights<kRowTiles, kSwiGlu>(p, shared_bytes, barriers, num_stages);

  // Everything that can be known before the previous kernel's results: between those and this
  // kernel's own, every instruction counts.
  const int warp_k = warp * kUnit + t * 8;
  const bf16* x_row = p.x + static_cast<int64_t>(g) * p.k + warp_k;
  uint4 x[kDepth][kSteps][kTokenTiles] = {};
  auto load_tokens = [&](int slot, int chunk) {
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
      if (is_producer || g + i * kTile >= p.num_tokens) continue;
      const bf16* row = x_row + static_cast<int64_t>(i) * kTile * p.k + chunk * kChunk;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        if (chunk * kChunk + warp * kUnit < p.k) x[slot][s][i] = Load16(row + s * 32);
      }
    }
  };
  const char* lane_weights = shared_bytes + g * kRowPitch + warp_k * 2;

  WaitForPrevious();
#pragma unroll
  for (int d = 0; d < kDepth; ++d) load_tokens(d, d);
  // What the epilogue adds, requested early: output e = threadIdx.x + j * kThreads.
  constexpr int kOutputs = (kOutRows * kTokens + kThreads - 1) / kThreads;
  float addend[kOutputs] = {};
#pragma unroll
  for (int j = 0; j < kOutputs; ++j) {
    const int e = threadIdx.x + j * kThreads;
    const int token = e / kOutRows, column = blockIdx.x * kOutRows + e % kOutRows;
    if (is_producer || token >= p.num_tokens || column >= p.n) continue;
    if (p.residual != nullptr) {
      addend[j] = __bfloat162float(p.residual[static_cast<int64_t>(token) * p.n + column]);
    }
    if (p.bias != nullptr) addend[j] += __bfloat162float(p.bias[column]);
  }

  float c[kRowTiles][4] = {};  // of 16 tokens, the last 8 of which may not exist
  float squares[kTokenTiles] = {};
  int stage = 0, parity = 0;
  for (int first = 0; first < num_chunks && !is_producer; first += kDepth) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int chunk = first + d;
      if (chunk >= num_chunks) break;
      Wait(&barriers.full[stage], parity);
      if (chunk * kChunk + warp * kUnit < p.k) {
        const char* stage_weights = lane_weights + stage * (kRows * kRowPitch);
        uint4 w[kSteps][kRowTiles];
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
#pragma unroll
          for (int i = 0; i < kRowTiles; ++i) {
            w[s][i] = Load16(stage_weights + i * 8 * kRowPitch + s * 64);
          }
        }
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const auto& tokens = x[d][s];
#pragma unroll
          for (int i = 0; kNorm && i < kTokenTiles; ++i) squares[i] += SumSquares(tokens[i]);
          const uint4 low = tokens[0];
          const uint4 high = kTokenTiles == 2 ? tokens[kTokenTiles - 1] : make_uint4(0, 0, 0, 0);
          const uint32_t a0[4] = {low.x, high.x, low.y, high.y};
          const uint32_t a1[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
          for (int i = 0; i < kRowTiles; ++i) {
            Mma(c[i], a0, w[s][i].x, w[s][i].y, bf16{});
            Mma(c[i], a1, w[s][i].z, w[s][i].w, bf16{});
          }
        }
      }
      if (chunk + num_stages < num_chunks) {
        __syncwarp();
        if (lane == 0) Arrive(&barriers.empty[stage]);
      }
      if (chunk + kDepth < num_chunks) load_tokens(d, chunk + kDepth);
      if (++stage == num_stages) stage = 0, parity ^= 1;
    }
  }
  __syncthreads();
  auto& partials = *reinterpret_cast<Partials<kRows, kTokens>*>(shared_bytes);

#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
    if (is_producer) continue;
    const int token = g + j * kTile;
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      partials.product[warp][token][i * 8 + 2 * t] = c[i][2 * j];
      partials.product[warp][token][i * 8 + 2 * t + 1] = c[i][2 * j + 1];
    }
    if constexpr (kNorm) {
      const float sum = WarpSum<4>(squares[j]);
      if (t == 0) partials.squares[warp][token] = sum;
    }
  }
  __syncthreads();

#pragma unroll
  for (int j = 0; j < kOutputs; ++j) {
    const int e = threadIdx.x + j * kThreads;
    const int token = e / kOutRows, row = e % kOutRows;
    const int column = blockIdx.x * kOutRows + row;
    if (is_producer || token >= p.num_tokens || column >= p.n) continue;
    const float scale = kNorm ? partials.InverseRms(token, p) : 1.0f;
    float v = partials.Product(token, row) * scale;
    if constexpr (kSwiGlu) v = Silu(v) * (partials.Product(token, row + kOutRows) * scale);
    static_cast<Out*>(p.out)[static_cast<int64_t>(token) * p.n + column] =
        static_cast<Out>(v + addend[j]);
  }
}

template <int kRowTiles, int kTokenTiles, bool kSwiGlu, bool kNorm, class Out>
cudaError_t RunTokens(const Params& p, cudaStream_t stream) {
  constexpr int kOutRows = 8 * kRowTiles / (kSwiGlu ? 2 : 1);
  const int num_stages = std::min(MaxStages(kRowTiles), CeilDiv(p.k, kChunk));
  constexpr size_t kStageBytes = 8 * kRowTiles * kRowPitch;
  using Sums = Partials<8 * kRowTiles, kTile * kTokenTiles>;
  const size_t smem = std::max(num_stages * kStageBytes, sizeof(Sums));
  return Launch(SkinnyLinear<kRowTiles, kTokenTiles, kSwiGlu, kNorm, Out>, CeilDiv(p.n, kOutRows),
                kThreads + kWarpSize, smem, stream, p, num_stages);
}

template <int kRowTiles, bool kSwiGlu, bool kNorm, class Out>
cudaError_t Run(const Params& p, cudaStream_t stream) {
  return p.num_tokens <= kTile ? RunTokens<kRowTiles, 1, kSwiGlu, kNorm, Out>(p, stream)
                               : RunTokens<kRowTiles, 2, kSwiGlu, kNorm, Out>(p, stream);
}

template <int kRowTiles, bool kSwiGlu, class Out>
cudaError_t RunNorm(const Params& p, bool norm, cudaStream_t stream) {
  return norm ? Run<kRowTiles, kSwiGlu, true, Out>(p, stream)
              : Run<kRowTiles, kSwiGlu, false, Out>(p, stream);
}

cudaError_t RunShape(const Params& p, bool norm, bool swiglu, bool float_out, int row_tiles,
                     cudaStream_t stream) {
  if (float_out) return RunNorm<4, false, float>(p, norm, stream);
  if (swiglu) {
    return row_tiles == 4 ? RunNorm<4, true, bf16>(p, norm, stream)
                          : RunNorm<2, true, bf16>(p, norm, stream);
  }
  switch (row_tiles) {
    case 1:
      return RunNorm<1, false, bf16>(p, norm, stream);
    case 2:
      return RunNorm<2, false, bf16>(p, norm, stream);
    default:
      return RunNorm<4, false, bf16>(p, norm, stream);
  }
}

// As many rows a block as leave about a block for each multiprocessor; measured on an H100. Long
// rows in few blocks would leave too little in flight.
int ChooseRowTiles(int weight_rows, int k) {
  constexpr int kWantedBlocks = 120, kLongRow = 4096;
  if (weight_rows < kWantedBlocks * 16) return 1;
  const bool few_long_rows = weight_rows < kMultiprocessors * 32 && k >= kLongRow;
  return weight_rows < kWantedBlocks * 32 || few_long_rows ? 2 : 4;
}

}  // namespace
}  // namespace dlcore::kernels

int dlk_skinny_linear(const void* x, const void* weight, int norm, float eps, const void* bias,
                      const void* residual, void* out, int num_tokens, int n, int k, int swiglu,
                      int float_out, int row_tiles, cudaStream_t stream) {
  using namespace dlcore::kernels;
  if (num_tokens < 1 || num_tokens > 2 * kTile || k % kUnit != 0) return cudaErrorInvalidValue;
  const Params p{static_cast<const bf16*>(x),
                 static_cast<const bf16*>(weight),
                 static_cast<const bf16*>(bias),
                 static_cast<const bf16*>(residual),
                 out,
                 num_tokens,
                 n,
                 k,
                 eps};
  if (row_tiles == 0) row_tiles = ChooseRowTiles(swiglu ? 2 * n : n, k);
  return RunShape(p, norm, swiglu, float_out, row_tiles, stream);
}

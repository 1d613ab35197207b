// y = x W^T for hundreds of tokens and more (wide_product.cuh), and what is done to its sums.
//
// SwiGLU: a tile's rows are gates and their ups, both among a thread's sums. The residual comes by
// the copy engine while the products run.
//
// RMSNorm between two products needs no pass of its own: the first also writes each row's sum of
// squares in a piece of 256 outputs; the second, whose tokens those are, scales its sums by the
// row's 1 / rms.

#include "kernels/kernels.h"
#include "kernels/wide_finish.cuh"

namespace dlcore::kernels::wide {
namespace {

// y, or silu(gate) * up, of rows scaled by their 1 / rms if asked.
template <bool kSwiGlu, int kNumWarpgroups>
class Activate {
 public:
  static constexpr int kWarpgroups = kNumWarpgroups;
  static constexpr int kOutRows = kSwiGlu ? kRows / 2 : kRows;
  static constexpr int kStages = kWarpgroups == 2 ? 4 : 3;
  static constexpr int kBuffers = 2;
  struct Params {
    CUtensorMap out;
  };

  __device__ Activate(const Product& p, const Params& params, char* boxes, uint64_t*, int group)
      : p_(p), params_(params), boxes_(boxes, group) {}

  __device__ __forceinline__ void Begin(const Tile&) {}
  __device__ __forceinline__ void Meanwhile(const Tile& tile) {
    scales_.Load(p_, tile.token + FirstRow());
  }
  __device__ __forceinline__ void End(const Sums& sums, const Tile& tile) {
    boxes_.template WaitUntilRead<0>();
#pragma unroll
    for (int i = 0; i < kOutRows / 64; ++i) {
      if (i >= kBuffers) boxes_.template WaitUntilRead<kBuffers - 1>();
      Pack(sums, i);
      boxes_.Send(&params_.out, tile, tile.rows * kOutRows + i * 64, i);
    }
  }
  __device__ __forceinline__ void Done() { boxes_.Flush(); }

 private:
  __device__ __forceinline__ void Pack(const Sums& sums, int i) {
    ForEachPair(i, [&](int j, int half, int at) {
      const float scale = scales_.values[half];
      float2 v = {sums[at] * scale, sums[at + 1] * scale};
      if constexpr (kSwiGlu) {
        v.x = Silu(v.x) * (sums[at + kRows / 4] * scale);
        v.y = Silu(v.y) * (sums[at + kRows / 4 + 1] * scale);
      }
      StoreShared(boxes_.Pair(i, j, half), PackBf16(v.x, v.y));
    });
  }

  const Product& p_;
  const Params& params_;
  const Boxes<kBuffers> boxes_;
  RowScales scales_;
};

// y + residual and, for the RMSNorm after it, squares.
class AddResidual {
 public:
  static constexpr int kWarpgroups = 2;
  static constexpr int kOutRows = kRows;
  static constexpr int kStages = 3;
  static constexpr int kBuffers = kRows / 64;  // a tile's residual, then its outputs
  struct Params {
    CUtensorMap out, residual;
    float* out_squares;  // [row_tiles, T] or null
  };

  __device__ AddResidual(const Product& p, const Params& params, char* boxes, uint64_t* arrived,
                         int group)
      : p_(p), params_(params), boxes_(boxes, group), arrived_(arrived), group_(group) {}

  __device__ __forceinline__ void Begin(const Tile& tile) {
    if (!boxes_.leads()) return;
    WaitForStoresToRead<0>();
    ArriveExpecting(arrived_, kBuffers * kBoxBytes);
#pragma unroll
    for (int i = 0; i < kBuffers; ++i) {
      CopyBox(boxes_[i], &params_.residual, tile.token + group_ * 64, tile.rows * kRows + i * 64,
              arrived_);
    }
  }
  __device__ __forceinline__ void Meanwhile(const Tile&) {}
  __device__ __forceinline__ void End(const Sums& sums, const Tile& tile) {
    Wait(arrived_, parity_);
    parity_ ^= 1;
    float squares[2] = {};
#pragma unroll
    for (int i = 0; i < kBuffers; ++i) {
      Pack(sums, i, squares);
      boxes_.Send(&params_.out, tile, tile.rows * kRows + i * 64, i);
    }
    if (params_.out_squares != nullptr) StoreSquares(squares, tile);
  }
  __device__ __forceinline__ void Done() { boxes_.Flush(); }

 private:
  // squares: of the outputs as later layers will read them, rounding included.
  __device__ __forceinline__ void Pack(const Sums& sums, int i, float (&squares)[2]) {
    ForEachPair(i, [&](int j, int half, int at) {
      const uint32_t address = boxes_.Pair(i, j, half);
      const float2 residual = ToFloat2(LoadShared(address));
      const uint32_t pair = PackBf16(sums[at] + residual.x, sums[at + 1] + residual.y);
      StoreShared(address, pair);
      const float2 v = ToFloat2(pair);
      squares[half] += v.x * v.x + v.y * v.y;
    });
  }
  __device__ __forceinline__ void StoreSquares(const float (&squares)[2], const Tile& tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = WarpSum<4>(squares[half]);
      const int token = tile.token + FirstRow() + half * 8;
      if (threadIdx.x % 4 == 0 && token < p_.num_tokens) {
        params_.out_squares[static_cast<int64_t>(tile.rows) * p_.num_tokens + token] = sum;
      }
    }
  }

  const Product& p_;
  const Params& params_;
  const Boxes<kBuffers> boxes_;
  uint64_t* const arrived_;
  const int group_;
  int parity_ = 0;
};

Product ProductOf(const dlk_product& a, int group) {
  Product p{};
  p.num_tokens = a.num_tokens, p.n = a.n, p.k = a.k;
  p.share_stride = a.swiglu ? a.n : kRows / kCluster;
  p.group = group;
  p.squares = a.squares, p.num_pieces = a.num_pieces, p.eps = a.eps;
  return p;
}

template <bool kSwiGlu, int kWarpgroups>
cudaError_t RunActivate(const dlk_product& a, int group, cudaStream_t stream) {
  using Finish = Activate<kSwiGlu, kWarpgroups>;
  typename Finish::Params params;
  const cudaError_t error = EncodeMatrix(&params.out, a.out, a.num_tokens, a.n, 64);
  if (error != cudaSuccess) return error;
  const Product p = ProductOf(a, CeilDiv(2 * group, kWarpgroups));
  return Run<Finish>(p, a.x, a.weight, kSwiGlu ? 2 * a.n : a.n, params, stream);
}

// How long tiles of so many warpgroups take, in rounds of one.
int Rounds(const dlk_product& a, int warpgroups) {
  const int rows = a.swiglu ? 2 * a.n : a.n;
  const int tiles = CeilDiv(a.num_tokens, kCluster * warpgroups * 64) * CeilDiv(rows, kRows);
  return CeilDiv(tiles, kMultiprocessors / kCluster) * warpgroups;
}
// Tiles of 192 tokens take in a fifth fewer bytes a product, which costs power: they win unless
// they fill their rounds worse.
template <bool kSwiGlu>
cudaError_t RunActivate(const dlk_product& a, int group, cudaStream_t stream) {
  const bool tall = Rounds(a, 3) <= Rounds(a, 2) * 1.03;
  return tall ? RunActivate<kSwiGlu, 3>(a, group, stream)
              : RunActivate<kSwiGlu, 2>(a, group, stream);
}

cudaError_t RunAddResidual(const dlk_product& a, int group, cudaStream_t stream) {
  AddResidual::Params params{};
  cudaError_t error = EncodeMatrix(&params.out, a.out, a.num_tokens, a.n, 64);
  if (error != cudaSuccess) return error;
  error = EncodeMatrix(&params.residual, a.residual, a.num_tokens, a.n, 64);
  if (error != cudaSuccess) return error;
  params.out_squares = a.out_squares;
  return Run<AddResidual>(ProductOf(a, group), a.x, a.weight, a.n, params, stream);
}

}  // namespace
}  // namespace dlcore::kernels::wide

int dlk_wide_linear(const dlk_product* args, int group, cudaStream_t stream) {
  using namespace dlcore::kernels::wide;
  const dlk_product& a = *args;
  if (a.num_tokens < 1 || a.n % 8 != 0 || a.k % 8 != 0 || group < 1 || a.bias != nullptr ||
      a.norm_space != nullptr || (a.swiglu && a.residual != nullptr) ||
      (a.residual != nullptr && a.squares != nullptr) ||
      (a.out_squares != nullptr && a.residual == nullptr)) {
    return cudaErrorInvalidValue;
  }
  if (a.residual != nullptr) return RunAddResidual(a, group, stream);
  return a.swiglu ? RunActivate<true>(a, group, stream) : RunActivate<false>(a, group, stream);
}

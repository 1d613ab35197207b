// SwiGLU's activation, 8 values a thread at a time.

#include "kernels/common.cuh"
#include "kernels/kernels.h"

namespace dlcore::kernels {
namespace {

constexpr int kThreads = 256;

struct Params {
  const bf16* x;
  bf16* out;
  const bf16* stream;  // [T, stream_dim] or null
  int stream_dim;
  float stream_eps;
  int vectors_per_row;
  int64_t num_vectors;
};

__device__ __forceinline__ void Activate(const Params& p, int64_t row, int column, float scale) {
  const bf16* gates = p.x + (row * 2 * p.vectors_per_row + column) * 8;
  float gate[8], up[8];
  Unpack8(Load16(gates), gate);
  Unpack8(Load16(gates + p.vectors_per_row * 8), up);
#pragma unroll
  for (int j = 0; j < 8; ++j) up[j] *= scale * Silu(gate[j] * scale);
  Store16(p.out + (row * p.vectors_per_row + column) * 8, Pack8(up));
}

__global__ void __launch_bounds__(kThreads) SiluAndMul(const Params p) {
  AllowNext();
  WaitForPrevious();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.num_vectors) return;
  Activate(p, i / p.vectors_per_row, static_cast<int>(i % p.vectors_per_row), 1.0f);
}

// x is the product of a stream that was to be RMS-normalised first: a block has a row.
__global__ void __launch_bounds__(kThreads) ScaledSiluAndMul(const Params p) {
  __shared__ float scratch[kWarpSize];
  AllowNext();
  WaitForPrevious();
  const int64_t row = blockIdx.x;
  const float scale =
      InverseRms(p.stream + row * p.stream_dim, p.stream_dim, p.stream_eps, scratch);
  for (int i = threadIdx.x; i < p.vectors_per_row; i += kThreads) Activate(p, row, i, scale);
}

}  // namespace
}  // namespace dlcore::kernels

int dlk_silu_and_mul(const void* x, void* out, const void* stream_rows, int stream_dim,
                     float stream_eps, int rows, int inner, cudaStream_t stream) {
  using namespace dlcore::kernels;
  if (inner % 8 != 0 || stream_dim % 8 != 0) return cudaErrorInvalidValue;
  const int64_t vectors = static_cast<int64_t>(rows) * (inner / 8);
  if (vectors == 0) return cudaSuccess;
  const Params p{static_cast<const bf16*>(x),
                 static_cast<bf16*>(out),
                 static_cast<const bf16*>(stream_rows),
                 stream_dim,
                 stream_eps,
                 inner / 8,
                 vectors};
  if (p.stream != nullptr) return Launch(ScaledSiluAndMul, rows, kThreads, 0, stream, p);
  return Launch(SiluAndMul, static_cast<unsigned>((vectors + kThreads - 1) / kThreads), kThreads, 0,
                stream, p);
}

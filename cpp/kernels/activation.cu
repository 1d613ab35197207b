// SwiGLU's activation, 8 values a thread.

#include "kernels/common.cuh"
#include "kernels/kernels.h"

namespace dlcore::kernels {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    SiluAndMul(const bf16* x, bf16* out, int vectors_per_row, int64_t num_vectors) {
  AllowNext();
  WaitForPrevious();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= num_vectors) return;
  const int64_t row = i / vectors_per_row, column = i % vectors_per_row;
  const bf16* gates = x + (row * 2 * vectors_per_row + column) * 8;
  float gate[8], up[8];
  Unpack8(Load16(gates), gate);
  Unpack8(Load16(gates + vectors_per_row * 8), up);
#pragma unroll
  for (int j = 0; j < 8; ++j) up[j] *= Silu(gate[j]);
  Store16(out + i * 8, Pack8(up));
}

}  // namespace
}  // namespace dlcore::kernels

int dlk_silu_and_mul(const void* x, void* out, int rows, int inner, cudaStream_t stream) {
  using namespace dlcore::kernels;
  if (inner % 8 != 0) return cudaErrorInvalidValue;
  const int64_t vectors = static_cast<int64_t>(rows) * (inner / 8);
  if (vectors == 0) return cudaSuccess;
  return Launch(SiluAndMul, static_cast<unsigned>((vectors + kThreads - 1) / kThreads), kThreads, 0,
                stream, static_cast<const bf16*>(x), static_cast<bf16*>(out), inner / 8, vectors);
}

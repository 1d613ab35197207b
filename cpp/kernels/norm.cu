// RMSNorm: one block a row, which stays in registers between its sum of squares and its scaling.

#include <algorithm>

#include "kernels/common.cuh"
#include "kernels/kernels.h"

namespace dlcore::kernels {
namespace {

constexpr int kMaxVectors = 2;  // of 8 values, per thread
constexpr int kMaxThreads = 1024;

__global__ void __launch_bounds__(kMaxThreads)
    RmsNorm(const bf16* x, const bf16* weight, float eps, bf16* out, int dim) {
  __shared__ float scratch[kWarpSize];
  AllowNext();
  WaitForPrevious();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * dim;
  float values[kMaxVectors][8];
  float sum_squares = 0;
#pragma unroll
  for (int v = 0; v < kMaxVectors; ++v) {
    const int i = (v * static_cast<int>(blockDim.x) + threadIdx.x) * 8;
    if (i >= dim) break;
    Unpack8(Load16(x + row + i), values[v]);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum_squares += values[v][j] * values[v][j];
  }
  const float inverse_rms = rsqrtf(BlockSum(sum_squares, scratch) / dim + eps);
#pragma unroll
  for (int v = 0; v < kMaxVectors; ++v) {
    const int i = (v * static_cast<int>(blockDim.x) + threadIdx.x) * 8;
    if (i >= dim) break;
    float w[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    if (weight != nullptr) Unpack8(Load16(weight + i), w);
#pragma unroll
    for (int j = 0; j < 8; ++j) values[v][j] *= inverse_rms * w[j];
    Store16(out + row + i, Pack8(values[v]));
  }
}

}  // namespace
}  // namespace dlcore::kernels

int dlk_rms_norm(const void* x, const void* weight, float eps, void* out, int rows, int dim,
                 cudaStream_t stream) {
  using namespace dlcore::kernels;
  if (dim % 8 != 0 || dim > kMaxThreads * kMaxVectors * 8) return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  const int threads = std::min(kMaxThreads, CeilDiv(dim / 8, kWarpSize) * kWarpSize);
  return Launch(RmsNorm, rows, threads, 0, stream, static_cast<const bf16*>(x),
                static_cast<const bf16*>(weight), eps, static_cast<bf16*>(out), dim);
}

#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

// Helpers every kernel here shares: chained launches, 16-byte accesses, warp sums.

namespace dlcore::kernels {

using bf16 = __nv_bfloat16;
using bf16x2 = __nv_bfloat162;
using fp8 = __nv_fp8_e4m3;

inline constexpr int kWarpSize = 32;
inline constexpr int kMultiprocessors = 132;  // of an H100 and an H200
inline constexpr unsigned kFullMask = 0xffffffffu;

// A value that is the same in all lanes of a warp. The compiler then knows it, and computes what
// follows from it once for the warp, as addresses of products' operands; but only where branches
// and loops on the way there depend on such values alone.
__device__ __forceinline__ int Uniform(int value) { return __shfl_sync(kFullMask, value, 0); }

// --- Chained launches (programmatic dependent launch).
// A kernel may start while the one before it still runs. It then prepares what
// does not depend on that one (weights, the step's arena), and waits here before
// it reads or writes anything else. EVERY kernel launched through Launch() must
// call WaitForPrevious() once: "the previous kernel is done" then implies that
// all before it are.
__device__ __forceinline__ void WaitForPrevious() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
// Lets the next kernel start once every block of this one has got here.
__device__ __forceinline__ void AllowNext() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

struct LaunchOptions {
  dim3 cluster = dim3(1);  // its blocks run at the same time and reach each other's shared memory
  // Leaves a multiprocessor all its shared memory, so that a block of the next kernel that wants
  // most of it can begin beside this kernel's.
  bool beside_large_blocks = false;
};

template <class... Params, class... Args>
cudaError_t LaunchWith(const LaunchOptions& options, void (*kernel)(Params...), dim3 grid,
                       dim3 block, size_t smem_bytes, cudaStream_t stream, Args... args) {
  if (smem_bytes > 24 * 1024) {  // with a kernel's static shared memory, possibly over 48 KiB
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[3] = {};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = smem_bytes;
  config.stream = stream;
  config.attrs = attributes;
  auto add = [&](cudaLaunchAttributeID id) -> cudaLaunchAttributeValue& {
    attributes[config.numAttrs].id = id;
    return attributes[config.numAttrs++].val;
  };
  add(cudaLaunchAttributeProgrammaticStreamSerialization).programmaticStreamSerializationAllowed =
      1;
  const dim3 cluster = options.cluster;
  if (cluster.x * cluster.y * cluster.z > 1) {
    add(cudaLaunchAttributeClusterDimension).clusterDim = {cluster.x, cluster.y, cluster.z};
  }
  if (options.beside_large_blocks) {
    add(cudaLaunchAttributePreferredSharedMemoryCarveout).sharedMemCarveout =
        cudaSharedmemCarveoutMaxShared;
  }
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

template <class... Params, class... Args>
cudaError_t LaunchClusters(void (*kernel)(Params...), dim3 grid, dim3 cluster, dim3 block,
                           size_t smem_bytes, cudaStream_t stream, Args... args) {
  return LaunchWith({cluster}, kernel, grid, block, smem_bytes, stream, args...);
}

template <class... Params, class... Args>
cudaError_t Launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem_bytes,
                   cudaStream_t stream, Args... args) {
  return LaunchWith({}, kernel, grid, block, smem_bytes, stream, args...);
}

// --- Memory.
// 16 bytes = 8 bf16. Weights are read once a step: keep them out of L1.
__device__ __forceinline__ uint4 LoadWeights(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
__device__ __forceinline__ uint4 Load16(const void* p) { return *static_cast<const uint4*>(p); }
__device__ __forceinline__ void Store16(void* p, uint4 v) { *static_cast<uint4*>(p) = v; }

// Brings `bytes` (a multiple of 16) to L2.
__device__ __forceinline__ void PrefetchL2(const void* p, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
}

// --- Numbers.
__device__ __forceinline__ float2 ToFloat2(uint32_t pair) {
  return __bfloat1622float2(*reinterpret_cast<bf16x2*>(&pair));
}
__device__ __forceinline__ uint32_t PackBf16(float lo, float hi) {
  const bf16x2 pair = __floats2bfloat162_rn(lo, hi);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ void Unpack8(uint4 v, float (&out)[8]) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 f = ToFloat2(words[i]);
    out[2 * i] = f.x;
    out[2 * i + 1] = f.y;
  }
}
__device__ __forceinline__ float SumSquares(const float (&v)[8]) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) sum = __fmaf_rn(v[j], v[j], sum);
  return sum;
}
__device__ __forceinline__ float SumSquares(uint4 v) {
  float f[8];
  Unpack8(v, f);
  return SumSquares(f);
}
__device__ __forceinline__ uint4 Pack8(const float (&v)[8]) {
  return make_uint4(PackBf16(v[0], v[1]), PackBf16(v[2], v[3]), PackBf16(v[4], v[5]),
                    PackBf16(v[6], v[7]));
}
inline constexpr float kLog2E = 1.4426950408889634f;  // e^x is 2^(kLog2E x)

// 2^x in one instruction: below 2^-126 it is zero.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float Silu(float x) {
  return __fdividef(x, 1.0f + Exp2(-kLog2E * x));  // without a division's slow path
}

// --- Reductions. Every lane of each group of `kWidth` gets the result.
template <int kWidth = kWarpSize>
__device__ __forceinline__ float WarpSum(float v) {
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset /= 2) {
    v += __shfl_xor_sync(kFullMask, v, offset);
  }
  return v;
}

// Sum over the block, to every thread. `scratch`: float [32] shared. One call per scratch buffer.
__device__ __forceinline__ float BlockSum(float v, float* scratch) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int num_warps = (blockDim.x + kWarpSize - 1) / kWarpSize;
  v = WarpSum(v);
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  return WarpSum(lane < num_warps ? scratch[lane] : 0.0f);
}

// 1 / rms of a row of `dim` values, a multiple of 8, to every thread of the block: as BlockSum.
__device__ __forceinline__ float InverseRms(const bf16* row, int dim, float eps, float* scratch) {
  float squares = 0;
#pragma unroll 2
  for (int i = threadIdx.x * 8; i < dim; i += blockDim.x * 8) {
    squares += SumSquares(Load16(row + i));
  }
  return rsqrtf(BlockSum(squares, scratch) / dim + eps);
}

inline constexpr int CeilDiv(int a, int b) { return (a + b - 1) / b; }

}  // namespace dlcore::kernels

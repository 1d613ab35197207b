#pragma once

#include <cuda.h>

#include "kernels/barrier.cuh"

// Boxes of a row-major bf16 matrix, copied by the copy engine into swizzled shared memory.

namespace dlcore::kernels {

template <int kDims>
cudaError_t EncodeTensorMap(CUtensorMap* map, const void* base, const cuuint64_t (&sizes)[kDims],
                            const cuuint32_t (&box)[kDims]) {
  static const auto encode = [] {
    void* symbol = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, 12000, cudaEnableDefault,
                                     &found);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(symbol);
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint64_t strides[kDims - 1], stride = 2;
  cuuint32_t element_strides[kDims];
  for (int i = 0; i < kDims; ++i) {
    element_strides[i] = 1;
    stride *= sizes[i];
    if (i + 1 < kDims) strides[i] = stride;
  }
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kDims, const_cast<void*>(base), sizes, strides,
             box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// [rows, columns] with boxes of [box_rows, 64]: 128 bytes a row, swizzled as wgmma wants them.
inline cudaError_t EncodeMatrix(CUtensorMap* map, const void* base, uint64_t rows, uint64_t columns,
                                uint32_t box_rows) {
  return EncodeTensorMap<2>(map, base, {columns, rows}, {64, box_rows});
}
// [tokens, heads, columns] with boxes of [box_tokens, box_heads, 64].
inline cudaError_t EncodeHeads(CUtensorMap* map, const void* base, uint64_t tokens, uint64_t heads,
                               uint64_t columns, uint32_t box_tokens, uint32_t box_heads) {
  return EncodeTensorMap<3>(map, base, {columns, heads, tokens}, {64, box_heads, box_tokens});
}

// The box whose first element is (row, column). `shared` is 1024-byte aligned.
__device__ __forceinline__ void CopyBox(void* shared, const CUtensorMap* map, int row, int column,
                                        uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(column), "r"(row), "r"(SharedAddress(barrier))
      : "memory");
}

// The same, to this place of the shared memory of every block of the cluster in `blocks` (a bit
// each); the bytes count towards the barrier at `barrier`'s place in each of them.
__device__ __forceinline__ void CopyBoxToCluster(void* shared, const CUtensorMap* map, int row,
                                                 int column, uint64_t* barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(column), "r"(row), "r"(SharedAddress(barrier)), "h"(blocks)
      : "memory");
}

// A box back to its matrix: what lies outside of it is left out. Belongs to this thread's open
// group of stores.
__device__ __forceinline__ void StoreBox(const CUtensorMap* map, int row, int column,
                                         const void* shared) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
      "r"(column), "r"(row), "r"(SharedAddress(shared))
      : "memory");
}
__device__ __forceinline__ void CommitStores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Waits until at most kPending groups of this thread's stores still read shared memory.
template <int kPending>
__device__ __forceinline__ void WaitForStoresToRead() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
// What this thread wrote to shared memory is seen by the copy engine.
__device__ __forceinline__ void FenceForCopyEngine() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// The box whose first element is (token, head, column).
__device__ __forceinline__ void CopyHeads(void* shared, const CUtensorMap* map, int token, int head,
                                          int column, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(column), "r"(head), "r"(token), "r"(SharedAddress(barrier))
      : "memory");
}
__device__ __forceinline__ void CopyHeads(void* shared, const CUtensorMap* map, int token, int head,
                                          int column, uint64_t* barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(column), "r"(head), "r"(token), "r"(SharedAddress(barrier)), "l"(policy)
      : "memory");
}
// Before the first copy with this map, which would wait for it.
__device__ __forceinline__ void PrefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

}  // namespace dlcore::kernels

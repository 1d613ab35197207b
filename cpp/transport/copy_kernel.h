#pragma once

#include "device/cuda_driver.h"
#include "dlcore/status.h"

namespace dlcore {

// A kernel that copies many ranges at once: (CudaCopy* on the device, uint32
// count). Small blocks, so that it finds room beside a model's kernels.
inline constexpr unsigned kCopyKernelThreads = 128;
// Of ranges too short to keep a block's loads under way, more at a time.
inline constexpr uint64_t kShortRange = 16 << 10;
inline constexpr unsigned CopyKernelBlocks(uint64_t mean_bytes) {
  return mean_bytes < kShortRange ? 512 : 128;
}

// The kernel in the primary context of `device`, which it keeps alive. It is
// PTX that the driver compiles, so building needs no CUDA toolkit.
// REQUIRES: that context is the calling thread's
// Thread safety: any thread.
Status LoadCopyKernel(const CudaDriver& driver, CuDeviceHandle device, CuFunction* out);

}  // namespace dlcore

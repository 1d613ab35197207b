#pragma once

#include "device/cuda_driver.h"
#include "dlcore/status.h"

namespace dlcore {

// A kernel that copies many ranges at once: (CudaCopy* on the device, uint32
// count). Small blocks, so that it finds room beside a model's kernels.
inline constexpr unsigned kCopyKernelBlocks = 128;
inline constexpr unsigned kCopyKernelThreads = 128;

// The kernel in the primary context of `device`, which it keeps alive. It is
// PTX that the driver compiles, so building needs no CUDA toolkit.
// REQUIRES: that context is the calling thread's
// Thread safety: any thread.
Status LoadCopyKernel(const CudaDriver& driver, CuDeviceHandle device, CuFunction* out);

}  // namespace dlcore

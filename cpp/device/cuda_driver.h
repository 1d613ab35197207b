#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "dlcore/status.h"

namespace dlcore {

// The few types and functions of the CUDA driver API the engine uses, declared
// by hand after NVIDIA's CUDA Driver API reference, so that neither building
// nor importing needs a CUDA toolkit.
using CuResult = int;
using CuDeviceHandle = int;
using CuContext = struct CuContextOpaque*;
using CuStream = struct CuStreamOpaque*;
using CuEvent = struct CuEventOpaque*;
using CuGraphExec = struct CuGraphExecOpaque*;
using CuAddress = uint64_t;

// An opaque name for memory of another process (cuIpcGetMemHandle).
struct CuIpcMemHandle {
  char reserved[64];
};

inline constexpr CuResult kCuSuccess = 0;
inline constexpr CuResult kCuNotReady = 600;
inline constexpr unsigned kCuStreamNonBlocking = 1;
inline constexpr unsigned kCuEventDisableTiming = 2;
inline constexpr unsigned kCuMemHostAllocPortable = 1;
inline constexpr unsigned kCuIpcMemLazyEnablePeerAccess = 1;

struct CudaDriver {
  CuResult (*Init)(unsigned flags);
  CuResult (*DriverGetVersion)(int* version);
  CuResult (*DeviceGetCount)(int* count);
  CuResult (*DeviceGet)(CuDeviceHandle* device, int ordinal);
  CuResult (*PrimaryCtxRetain)(CuContext* context, CuDeviceHandle device);
  CuResult (*PrimaryCtxRelease)(CuDeviceHandle device);
  CuResult (*CtxSetCurrent)(CuContext context);
  CuResult (*StreamCreate)(CuStream* stream, unsigned flags);
  CuResult (*StreamDestroy)(CuStream stream);
  CuResult (*MemHostAlloc)(void** host, size_t bytes, unsigned flags);
  CuResult (*MemFreeHost)(void* host);
  CuResult (*MemcpyHtoDAsync)(CuAddress to, const void* from, size_t bytes, CuStream stream);
  CuResult (*MemcpyDtoHAsync)(void* to, CuAddress from, size_t bytes, CuStream stream);
  CuResult (*MemcpyDtoDAsync)(CuAddress to, CuAddress from, size_t bytes, CuStream stream);
  CuResult (*StreamSynchronize)(CuStream stream);
  CuResult (*MemAlloc)(CuAddress* address, size_t bytes);
  CuResult (*MemFree)(CuAddress address);
  CuResult (*IpcGetMemHandle)(CuIpcMemHandle* handle, CuAddress address);
  CuResult (*IpcOpenMemHandle)(CuAddress* address, CuIpcMemHandle handle, unsigned flags);
  CuResult (*IpcCloseMemHandle)(CuAddress address);
  CuResult (*EventCreate)(CuEvent* event, unsigned flags);
  CuResult (*EventDestroy)(CuEvent event);
  CuResult (*EventRecord)(CuEvent event, CuStream stream);
  CuResult (*EventQuery)(CuEvent event);
  CuResult (*GraphLaunch)(CuGraphExec graph, CuStream stream);
  CuResult (*GetErrorName)(CuResult result, const char** name);
  CuResult (*GetErrorString)(CuResult result, const char** text);

  // OK for kCuSuccess, else Internal naming the call and the driver's reason.
  [[nodiscard]] Status Check(CuResult result, std::string_view call) const;
};

// The driver of this process, loaded and initialised once. Unavailable where
// libcuda.so.1, one of its functions or every GPU is missing; the message says which.
// Thread safety: any thread.
Status LoadCudaDriver(const CudaDriver** out);

}  // namespace dlcore

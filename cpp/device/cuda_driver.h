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
using CuModule = struct CuModuleOpaque*;
using CuFunction = struct CuFunctionOpaque*;
using CuAddress = uint64_t;
using CuAllocation = uint64_t;  // CUmemGenericAllocationHandle

// CUmemLocation, CUmemAllocationProp and CUmemAccessDesc.
struct CuLocation {
  int type = 1;  // a device
  int id = 0;
};
struct CuAllocationProp {
  int type = 1;          // pinned: where it was put it stays
  int handle_types = 1;  // may be exported as a file descriptor
  CuLocation location;
  void* win32 = nullptr;
  uint64_t flags = 0;
};
struct CuAccessDesc {
  CuLocation location;
  int flags = 3;  // read and write
};

inline constexpr CuResult kCuSuccess = 0;
inline constexpr CuResult kCuNotReady = 600;
inline constexpr unsigned kCuStreamNonBlocking = 1;
inline constexpr unsigned kCuEventDisableTiming = 2;
inline constexpr unsigned kCuMemHostAllocPortable = 1;
inline constexpr unsigned kCuMemHostRegisterPortable = 1;
inline constexpr int kCuHandleTypePosixFd = 1;

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
  CuResult (*MemcpyAsync)(CuAddress to, CuAddress from, size_t bytes, CuStream stream);
  CuResult (*StreamSynchronize)(CuStream stream);
  CuResult (*MemAlloc)(CuAddress* address, size_t bytes);
  CuResult (*MemFree)(CuAddress address);
  CuResult (*MemHostRegister)(void* host, size_t bytes, unsigned flags);
  CuResult (*MemHostUnregister)(void* host);
  CuResult (*MemCreate)(CuAllocation* out, size_t bytes, const CuAllocationProp* prop,
                        unsigned long long flags);
  CuResult (*MemRelease)(CuAllocation allocation);
  CuResult (*MemExportToShareableHandle)(void* out, CuAllocation allocation, int type,
                                         unsigned long long flags);
  CuResult (*MemImportFromShareableHandle)(CuAllocation* out, void* handle, int type);
  CuResult (*MemAddressReserve)(CuAddress* out, size_t bytes, size_t alignment, CuAddress hint,
                                unsigned long long flags);
  CuResult (*MemAddressFree)(CuAddress address, size_t bytes);
  CuResult (*MemMap)(CuAddress address, size_t bytes, size_t offset, CuAllocation allocation,
                     unsigned long long flags);
  CuResult (*MemUnmap)(CuAddress address, size_t bytes);
  CuResult (*MemSetAccess)(CuAddress address, size_t bytes, const CuAccessDesc* who, size_t count);
  CuResult (*EventCreate)(CuEvent* event, unsigned flags);
  CuResult (*EventDestroy)(CuEvent event);
  CuResult (*EventRecord)(CuEvent event, CuStream stream);
  CuResult (*EventQuery)(CuEvent event);
  CuResult (*ModuleLoadData)(CuModule* out, const void* image);
  CuResult (*ModuleGetFunction)(CuFunction* out, CuModule module, const char* name);
  CuResult (*LaunchKernel)(CuFunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                           unsigned block_x, unsigned block_y, unsigned block_z,
                           unsigned shared_bytes, CuStream stream, void** arguments, void** extra);
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

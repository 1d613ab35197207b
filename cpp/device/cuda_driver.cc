#include "device/cuda_driver.h"

#include <string>

#include <dlfcn.h>

namespace dlcore {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";

struct Loaded {
  CudaDriver driver{};
  Status status;
};

// Looks functions up and remembers the first that is missing.
class Resolver {
 public:
  explicit Resolver(void* library) : library_(library) {}

  template <class Function>
  void operator()(const char* name, Function* out) {
    void* symbol = ::dlsym(library_, name);
    if (symbol == nullptr && missing_.empty()) missing_ = name;
    *out = reinterpret_cast<Function>(symbol);
  }

  [[nodiscard]] const std::string& missing() const { return missing_; }

 private:
  void* library_;
  std::string missing_;
};

// The _v2 names are the ABI since CUDA 3.2 (4.0 for streams); cuda.h hides them behind macros.
std::string ResolveAll(void* library, CudaDriver* d) {
  Resolver resolve(library);
  resolve("cuInit", &d->Init);
  resolve("cuDriverGetVersion", &d->DriverGetVersion);
  resolve("cuDeviceGetCount", &d->DeviceGetCount);
  resolve("cuDeviceGet", &d->DeviceGet);
  resolve("cuDevicePrimaryCtxRetain", &d->PrimaryCtxRetain);
  resolve("cuDevicePrimaryCtxRelease_v2", &d->PrimaryCtxRelease);
  resolve("cuCtxSetCurrent", &d->CtxSetCurrent);
  resolve("cuStreamCreate", &d->StreamCreate);
  resolve("cuStreamDestroy_v2", &d->StreamDestroy);
  resolve("cuMemHostAlloc", &d->MemHostAlloc);
  resolve("cuMemFreeHost", &d->MemFreeHost);
  resolve("cuMemcpyHtoDAsync_v2", &d->MemcpyHtoDAsync);
  resolve("cuMemcpyDtoHAsync_v2", &d->MemcpyDtoHAsync);
  resolve("cuMemcpyAsync", &d->MemcpyAsync);
  resolve("cuStreamSynchronize", &d->StreamSynchronize);
  resolve("cuMemAlloc_v2", &d->MemAlloc);
  resolve("cuMemFree_v2", &d->MemFree);
  resolve("cuMemHostRegister_v2", &d->MemHostRegister);
  resolve("cuMemHostUnregister", &d->MemHostUnregister);
  resolve("cuMemCreate", &d->MemCreate);
  resolve("cuMemRelease", &d->MemRelease);
  resolve("cuMemExportToShareableHandle", &d->MemExportToShareableHandle);
  resolve("cuMemImportFromShareableHandle", &d->MemImportFromShareableHandle);
  resolve("cuMemAddressReserve", &d->MemAddressReserve);
  resolve("cuMemAddressFree", &d->MemAddressFree);
  resolve("cuMemMap", &d->MemMap);
  resolve("cuMemUnmap", &d->MemUnmap);
  resolve("cuMemSetAccess", &d->MemSetAccess);
  resolve("cuEventCreate", &d->EventCreate);
  resolve("cuEventDestroy_v2", &d->EventDestroy);
  resolve("cuEventRecord", &d->EventRecord);
  resolve("cuEventQuery", &d->EventQuery);
  resolve("cuModuleLoadData", &d->ModuleLoadData);
  resolve("cuModuleGetFunction", &d->ModuleGetFunction);
  resolve("cuLaunchKernel", &d->LaunchKernel);
  resolve("cuGraphLaunch", &d->GraphLaunch);
  resolve("cuGetErrorName", &d->GetErrorName);
  resolve("cuGetErrorString", &d->GetErrorString);
  return resolve.missing();
}

Status LoadInto(CudaDriver* driver) {
  void* library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    // Thread-safe in glibc: the message is per thread.
    const char* reason = ::dlerror();  // NOLINT(concurrency-mt-unsafe)
    return Status::Unavailable(std::string("device 'cuda': cannot load ") + kLibrary + " (" +
                               (reason != nullptr ? reason : "unknown reason") +
                               "); install the NVIDIA driver or use device='cpu'");
  }
  const std::string missing = ResolveAll(library, driver);
  if (!missing.empty()) {
    return Status::Unavailable(std::string("device 'cuda': ") + kLibrary + " has no " + missing +
                               "; the NVIDIA driver is too old");
  }
  if (Status status = driver->Check(driver->Init(0), "cuInit"); !status.ok()) {
    return Status::Unavailable("device 'cuda': no usable GPU: " + status.message());
  }
  return {};
}

}  // namespace

Status CudaDriver::Check(CuResult result, std::string_view call) const {
  if (result == kCuSuccess) return {};
  const char* name = nullptr;
  const char* text = nullptr;
  GetErrorName(result, &name);
  GetErrorString(result, &text);
  return Status::Internal(std::string(call) +
                          " failed: " + (name != nullptr ? name : std::to_string(result)) + " (" +
                          (text != nullptr ? text : "unknown error") + ")");
}

Status LoadCudaDriver(const CudaDriver** out) {
  // Never unloaded: the driver keeps threads of its own.
  static const Loaded loaded = [] {
    Loaded result;
    result.status = LoadInto(&result.driver);
    return result;
  }();
  *out = loaded.status.ok() ? &loaded.driver : nullptr;
  return loaded.status;
}

}  // namespace dlcore

#include "transport/cuda_stream.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "transport/copy_kernel.h"

namespace dlcore {
namespace {

// Copies of one Copy that the kernel takes; what one READ may ask for.
constexpr size_t kMaxListed = 4096;
constexpr size_t kListBytes = kMaxListed * sizeof(CudaCopy);
// From this mean length on, a copy engine is as fast and leaves the model its SMs.
constexpr uint64_t kEngineBytes = 512 << 10;

uint64_t TotalBytes(std::span<const CudaCopy> copies) {
  return std::accumulate(copies.begin(), copies.end(), uint64_t{0},
                         [](uint64_t sum, const CudaCopy& copy) { return sum + copy.bytes; });
}

}  // namespace

Status CudaCopyStream::Create(int32_t device, std::unique_ptr<CudaCopyStream>* out) {
  const CudaDriver* driver = nullptr;
  if (Status s = LoadCudaDriver(&driver); !s.ok()) return s;
  CuDeviceHandle handle = 0;
  if (Status s = driver->Check(driver->DeviceGet(&handle, device), "cuDeviceGet"); !s.ok()) {
    return Status::Unavailable("GPU " + std::to_string(device) + ": " + s.message());
  }
  std::unique_ptr<CudaCopyStream> stream(new CudaCopyStream(*driver, handle));
  Status s = driver->Check(driver->PrimaryCtxRetain(&stream->context_, handle),
                           "cuDevicePrimaryCtxRetain");
  if (s.ok()) s = stream->Bind();
  if (s.ok()) s = stream->Allocate();
  if (s.ok()) *out = std::move(stream);
  return s;
}

Status CudaCopyStream::Allocate() {
  const CudaDriver& cuda = driver_;
  if (Status s = LoadCopyKernel(cuda, device_, &kernel_); !s.ok()) return s;
  Status s = cuda.Check(cuda.StreamCreate(&stream_, kCuStreamNonBlocking), "cuStreamCreate");
  if (s.ok()) s = cuda.Check(cuda.EventCreate(&event_, kCuEventDisableTiming), "cuEventCreate");
  if (s.ok()) {
    void* list = nullptr;
    s = cuda.Check(cuda.MemHostAlloc(&list, kListBytes, kCuMemHostAllocPortable), "cuMemHostAlloc");
    pinned_list_ = static_cast<CudaCopy*>(list);
  }
  if (s.ok()) s = cuda.Check(cuda.MemAlloc(&device_list_, kListBytes), "cuMemAlloc");
  return s;
}

CudaCopyStream::~CudaCopyStream() {
  if (context_ == nullptr) return;
  if (Bind().ok()) {
    if (stream_ != nullptr) driver_.StreamSynchronize(stream_);
    if (device_list_ != 0) driver_.MemFree(device_list_);
    if (pinned_list_ != nullptr) driver_.MemFreeHost(pinned_list_);
    if (event_ != nullptr) driver_.EventDestroy(event_);
    if (stream_ != nullptr) driver_.StreamDestroy(stream_);
  }
  driver_.PrimaryCtxRelease(device_);
}

Status CudaCopyStream::Bind() const {
  return driver_.Check(driver_.CtxSetCurrent(context_), "cuCtxSetCurrent");
}

Status CudaCopyStream::Copy(std::span<const CudaCopy> copies) {
  const bool small = TotalBytes(copies) < copies.size() * kEngineBytes;
  const bool in_kernel = small && copies.size() > 1 && copies.size() <= kMaxListed;
  const Status s = in_kernel ? CopyInKernel(copies) : CopyInEngine(copies);
  if (!s.ok()) driver_.StreamSynchronize(stream_);
  return s;
}

Status CudaCopyStream::CopyInEngine(std::span<const CudaCopy> copies) {
  for (const CudaCopy& copy : copies) {
    const CuResult result = driver_.MemcpyAsync(copy.to, copy.from, copy.bytes, stream_);
    if (Status s = driver_.Check(result, "cuMemcpyAsync"); !s.ok()) return s;
  }
  return Status::Ok();
}

Status CudaCopyStream::CopyInKernel(std::span<const CudaCopy> copies) {
  std::ranges::copy(copies, pinned_list_);
  Status s = driver_.Check(
      driver_.MemcpyHtoDAsync(device_list_, pinned_list_, copies.size_bytes(), stream_),
      "cuMemcpyHtoDAsync");
  if (!s.ok()) return s;
  auto count = static_cast<uint32_t>(copies.size());
  void* arguments[] = {&device_list_, &count};
  const unsigned blocks = std::min(count, CopyKernelBlocks(TotalBytes(copies) / count));
  return driver_.Check(driver_.LaunchKernel(kernel_, blocks, 1, 1, kCopyKernelThreads, 1, 1, 0,
                                            stream_, arguments, nullptr),
                       "cuLaunchKernel");
}

Status CudaCopyStream::Mark() {
  return driver_.Check(driver_.EventRecord(event_, stream_), "cuEventRecord");
}

Status CudaCopyStream::Query(bool* done) {
  const CuResult result = driver_.EventQuery(event_);
  *done = result == kCuSuccess;
  return result == kCuNotReady ? Status::Ok() : driver_.Check(result, "cuEventQuery");
}

Status CudaCopyStream::Synchronize() {
  return driver_.Check(driver_.StreamSynchronize(stream_), "cuStreamSynchronize");
}

}  // namespace dlcore

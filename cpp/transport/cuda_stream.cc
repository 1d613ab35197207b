#include "transport/cuda_stream.h"

#include <mutex>
#include <span>
#include <utility>

#include "transport/pool_memory.h"

namespace dlcore {
namespace {

class CudaPoolMemory final : public PoolMemory {
 public:
  CudaPoolMemory(int32_t device, std::unique_ptr<CudaCopyStream> stream)
      : device_(device), stream_(std::move(stream)) {}

  Status Gather(std::span<const MemoryRange> from, std::byte* to) override {
    const std::lock_guard lock(mutex_);
    if (Status s = stream_->Bind(); !s.ok()) return s;
    for (const MemoryRange& range : from) {
      if (Status s = stream_->CopyToHost(to, range.address, range.length); !s.ok()) return s;
      to += range.length;
    }
    return stream_->Synchronize();
  }
  Status Scatter(const std::byte* from, std::span<const MemoryRange> to) override {
    const std::lock_guard lock(mutex_);
    if (Status s = stream_->Bind(); !s.ok()) return s;
    for (const MemoryRange& range : to) {
      if (Status s = stream_->CopyToDevice(range.address, from, range.length); !s.ok()) return s;
      from += range.length;
    }
    return stream_->Synchronize();
  }
  [[nodiscard]] int32_t cuda_device() const override { return device_; }

 private:
  const int32_t device_;
  std::mutex mutex_;
  std::unique_ptr<CudaCopyStream> stream_;
};

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
  if (s.ok()) {
    s = driver->Check(driver->StreamCreate(&stream->stream_, kCuStreamNonBlocking),
                      "cuStreamCreate");
  }
  if (s.ok()) {
    s = driver->Check(driver->EventCreate(&stream->event_, kCuEventDisableTiming), "cuEventCreate");
  }
  if (s.ok()) *out = std::move(stream);
  return s;
}

CudaCopyStream::~CudaCopyStream() {
  if (context_ == nullptr) return;
  if (Bind().ok()) {
    if (stream_ != nullptr) driver_.StreamSynchronize(stream_);
    if (event_ != nullptr) driver_.EventDestroy(event_);
    if (stream_ != nullptr) driver_.StreamDestroy(stream_);
  }
  driver_.PrimaryCtxRelease(device_);
}

Status CudaCopyStream::Bind() const {
  return driver_.Check(driver_.CtxSetCurrent(context_), "cuCtxSetCurrent");
}

Status CudaCopyStream::Copy(CuAddress to, CuAddress from, uint64_t bytes) {
  return driver_.Check(driver_.MemcpyDtoDAsync(to, from, bytes, stream_), "cuMemcpyDtoDAsync");
}

Status CudaCopyStream::CopyToHost(void* to, CuAddress from, uint64_t bytes) {
  return driver_.Check(driver_.MemcpyDtoHAsync(to, from, bytes, stream_), "cuMemcpyDtoHAsync");
}

Status CudaCopyStream::CopyToDevice(CuAddress to, const void* from, uint64_t bytes) {
  return driver_.Check(driver_.MemcpyHtoDAsync(to, from, bytes, stream_), "cuMemcpyHtoDAsync");
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

Status NewCudaPoolMemory(int32_t device, std::unique_ptr<PoolMemory>* out) {
  std::unique_ptr<CudaCopyStream> stream;
  if (Status s = CudaCopyStream::Create(device, &stream); !s.ok()) return s;
  *out = std::make_unique<CudaPoolMemory>(device, std::move(stream));
  return Status::Ok();
}

}  // namespace dlcore

#include <string>
#include <utility>

#include "device/cuda_driver.h"
#include "device/device.h"

namespace dlcore {
namespace {

// The GPU's primary context (the one PyTorch uses too), kept alive by
// everything made in it.
class CudaContext {
 public:
  CudaContext(const CudaDriver& driver, CuDeviceHandle device, CuContext context)
      : driver_(driver), device_(device), context_(context) {}
  ~CudaContext() { driver_.PrimaryCtxRelease(device_); }
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  [[nodiscard]] const CudaDriver& driver() const { return driver_; }
  Status Bind() const { return driver_.Check(driver_.CtxSetCurrent(context_), "cuCtxSetCurrent"); }

 private:
  const CudaDriver& driver_;
  CuDeviceHandle device_;
  CuContext context_;
};
using ContextPtr = std::shared_ptr<const CudaContext>;

class CudaStream final : public Stream {
 public:
  CudaStream(ContextPtr context, CuStream stream) : context_(std::move(context)), stream_(stream) {}
  ~CudaStream() override {
    if (context_->Bind().ok()) context_->driver().StreamDestroy(stream_);
  }

  Status CopyToDevice(uint64_t device_address, std::span<const std::byte> host) override {
    const CudaDriver& cuda = context_->driver();
    return cuda.Check(cuda.MemcpyHtoDAsync(device_address, host.data(), host.size(), stream_),
                      "cuMemcpyHtoDAsync");
  }

  Status CopyToHost(std::span<std::byte> host, uint64_t device_address) override {
    const CudaDriver& cuda = context_->driver();
    return cuda.Check(cuda.MemcpyDtoHAsync(host.data(), device_address, host.size(), stream_),
                      "cuMemcpyDtoHAsync");
  }

  [[nodiscard]] void* handle() const override { return stream_; }

 private:
  ContextPtr context_;
  CuStream stream_;
};

class CudaEvent final : public Event {
 public:
  CudaEvent(ContextPtr context, CuEvent event) : context_(std::move(context)), event_(event) {}
  ~CudaEvent() override {
    if (context_->Bind().ok()) context_->driver().EventDestroy(event_);
  }

  Status Record(Stream& stream) override {
    const CudaDriver& cuda = context_->driver();
    return cuda.Check(cuda.EventRecord(event_, static_cast<CuStream>(stream.handle())),
                      "cuEventRecord");
  }

  Status Query(bool* done) override {
    const CuResult result = context_->driver().EventQuery(event_);
    *done = result == kCuSuccess;
    if (result == kCuNotReady) return {};
    return context_->driver().Check(result, "cuEventQuery");
  }

 private:
  ContextPtr context_;
  CuEvent event_;
};

class CudaPinnedBuffer final : public PinnedBuffer {
 public:
  CudaPinnedBuffer(ContextPtr context, std::span<std::byte> bytes)
      : context_(std::move(context)), bytes_(bytes) {}
  ~CudaPinnedBuffer() override {
    if (context_->Bind().ok()) context_->driver().MemFreeHost(bytes_.data());
  }

  [[nodiscard]] std::span<std::byte> bytes() override { return bytes_; }

 private:
  ContextPtr context_;
  std::span<std::byte> bytes_;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(ContextPtr context) : context_(std::move(context)) {}

  Status BindThread() override { return context_->Bind(); }
  [[nodiscard]] bool asynchronous() const override { return true; }

  Status NewStream(std::unique_ptr<Stream>* out) override {
    CuStream stream = nullptr;
    if (Status bound = BindThread(); !bound.ok()) return bound;
    const CudaDriver& cuda = context_->driver();
    Status status = cuda.Check(cuda.StreamCreate(&stream, kCuStreamNonBlocking), "cuStreamCreate");
    if (status.ok()) *out = std::make_unique<CudaStream>(context_, stream);
    return status;
  }

  Status NewEvent(std::unique_ptr<Event>* out) override {
    CuEvent event = nullptr;
    if (Status bound = BindThread(); !bound.ok()) return bound;
    const CudaDriver& cuda = context_->driver();
    Status status = cuda.Check(cuda.EventCreate(&event, kCuEventDisableTiming), "cuEventCreate");
    if (status.ok()) *out = std::make_unique<CudaEvent>(context_, event);
    return status;
  }

  Status NewPinnedBuffer(size_t bytes, std::unique_ptr<PinnedBuffer>* out) override {
    void* host = nullptr;
    if (Status bound = BindThread(); !bound.ok()) return bound;
    const CudaDriver& cuda = context_->driver();
    Status status = cuda.Check(cuda.MemHostAlloc(&host, bytes, kCuMemHostAllocPortable),
                               "cuMemHostAlloc of " + std::to_string(bytes) + " bytes");
    if (status.ok()) {
      *out = std::make_unique<CudaPinnedBuffer>(
          context_, std::span<std::byte>(static_cast<std::byte*>(host), bytes));
    }
    return status;
  }

 private:
  ContextPtr context_;
};

}  // namespace

Status NewCudaDevice(int32_t index, std::unique_ptr<Device>* out) {
  const CudaDriver* cuda = nullptr;
  if (Status status = LoadCudaDriver(&cuda); !status.ok()) return status;
  int count = 0;
  if (Status status = cuda->Check(cuda->DeviceGetCount(&count), "cuDeviceGetCount"); !status.ok()) {
    return status;
  }
  if (index < 0 || index >= count) {
    return Status::Unavailable("device_index " + std::to_string(index) + ": this machine shows " +
                               std::to_string(count) + " GPUs");
  }
  CuDeviceHandle device = 0;
  if (Status status = cuda->Check(cuda->DeviceGet(&device, index), "cuDeviceGet"); !status.ok()) {
    return status;
  }
  CuContext context = nullptr;
  if (Status status =
          cuda->Check(cuda->PrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
      !status.ok()) {
    return status;
  }
  *out = std::make_unique<CudaDevice>(std::make_shared<CudaContext>(*cuda, device, context));
  return {};
}

}  // namespace dlcore

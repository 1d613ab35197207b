#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "dlcore/status.h"

namespace dlcore {

// An ordered queue of device work. Engine thread only.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual Status CopyToDevice(uint64_t device_address, std::span<const std::byte> host) = 0;
  virtual Status CopyToHost(std::span<std::byte> host, uint64_t device_address) = 0;
  // The driver's handle (CUstream), null on the CPU.
  [[nodiscard]] virtual void* handle() const = 0;
};

// A point in a stream. Engine thread only.
class Event {
 public:
  virtual ~Event() = default;
  virtual Status Record(Stream& stream) = 0;
  // True once everything recorded before it is done (or nothing was recorded);
  // a failed launch surfaces here.
  virtual Status Query(bool* done) = 0;
};

// Host memory that copies run from and to without staging.
class PinnedBuffer {
 public:
  virtual ~PinnedBuffer() = default;
  [[nodiscard]] virtual std::span<std::byte> bytes() = 0;
};

// The GPU through the driver API, or its twin in host memory, where every
// operation completes before it returns.
class Device {
 public:
  virtual ~Device() = default;
  // Binds the calling thread to this device (the engine thread, once).
  virtual Status BindThread() = 0;
  // False where every operation completes before it returns: then planning a
  // step ahead hides nothing.
  [[nodiscard]] virtual bool asynchronous() const = 0;
  virtual Status NewStream(std::unique_ptr<Stream>* out) = 0;
  virtual Status NewEvent(std::unique_ptr<Event>* out) = 0;
  virtual Status NewPinnedBuffer(size_t bytes, std::unique_ptr<PinnedBuffer>* out) = 0;
};

// Fails with Unavailable where libcuda.so.1 or the GPU is missing; the message
// says which.
Status NewCudaDevice(int32_t index, std::unique_ptr<Device>* out);
std::unique_ptr<Device> NewCpuDevice();

}  // namespace dlcore

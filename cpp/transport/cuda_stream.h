#pragma once

#include <cstdint>
#include <memory>

#include "device/cuda_driver.h"
#include "dlcore/status.h"

namespace dlcore {

// A stream of its own on one GPU's primary context (the one PyTorch uses too),
// for copies that must not queue behind the model. Every call binds the calling
// thread to that context.
// Thread safety: one thread at a time.
class CudaCopyStream {
 public:
  // Unavailable where the driver or the GPU is missing.
  static Status Create(int32_t device, std::unique_ptr<CudaCopyStream>* out);
  ~CudaCopyStream();
  CudaCopyStream(const CudaCopyStream&) = delete;
  CudaCopyStream& operator=(const CudaCopyStream&) = delete;

  Status Bind() const;
  Status Copy(CuAddress to, CuAddress from, uint64_t bytes);
  Status CopyToHost(void* to, CuAddress from, uint64_t bytes);
  Status CopyToDevice(CuAddress to, const void* from, uint64_t bytes);
  // Marks the end of what was queued; Query tells whether it has been reached.
  Status Mark();
  Status Query(bool* done);
  Status Synchronize();

  [[nodiscard]] const CudaDriver& driver() const { return driver_; }

 private:
  CudaCopyStream(const CudaDriver& driver, CuDeviceHandle device)
      : driver_(driver), device_(device) {}

  const CudaDriver& driver_;
  CuDeviceHandle device_;
  CuContext context_ = nullptr;
  CuStream stream_ = nullptr;
  CuEvent event_ = nullptr;
};

}  // namespace dlcore

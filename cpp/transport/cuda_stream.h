#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "device/cuda_driver.h"
#include "dlcore/status.h"

namespace dlcore {

// One range to copy. Addresses are of any GPU this one reaches, or of pinned
// host memory. The copy kernel reads this layout.
struct CudaCopy {
  CuAddress to = 0;
  CuAddress from = 0;
  uint64_t bytes = 0;
};

// A stream of its own on one GPU's primary context (the one PyTorch uses too),
// for copies that must not queue behind the model. Whoever calls anything else
// binds the thread to that context first.
// Thread safety: one thread at a time.
class CudaCopyStream {
 public:
  // Unavailable where the driver or the GPU is missing.
  static Status Create(int32_t device, std::unique_ptr<CudaCopyStream>* out);
  ~CudaCopyStream();  // waits for what was queued
  CudaCopyStream(const CudaCopyStream&) = delete;
  CudaCopyStream& operator=(const CudaCopyStream&) = delete;

  Status Bind() const;
  // Queues copies of ranges that do not overlap: large ones on a copy engine,
  // many small ones in one kernel. When it fails, none is under way.
  // REQUIRES: what was queued before is done
  Status Copy(std::span<const CudaCopy> copies);
  // Marks the end of what was queued; Query tells whether it has been reached.
  Status Mark();
  Status Query(bool* done);
  Status Synchronize();

  [[nodiscard]] const CudaDriver& driver() const { return driver_; }

 private:
  CudaCopyStream(const CudaDriver& driver, CuDeviceHandle device)
      : driver_(driver), device_(device) {}
  Status Allocate();
  Status CopyInEngine(std::span<const CudaCopy> copies);
  Status CopyInKernel(std::span<const CudaCopy> copies);

  const CudaDriver& driver_;
  CuDeviceHandle device_;
  CuContext context_ = nullptr;
  CuStream stream_ = nullptr;
  CuEvent event_ = nullptr;
  CuFunction kernel_ = nullptr;
  CudaCopy* pinned_list_ = nullptr;
  CuAddress device_list_ = 0;
};

}  // namespace dlcore

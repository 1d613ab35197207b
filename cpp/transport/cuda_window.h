#pragma once

#include <cstdint>
#include <memory>

#include "device/cuda_driver.h"
#include "dlcore/status.h"
#include "transport/socket.h"

namespace dlcore {

// GPU memory that another process can map by a file descriptor. The driver
// counts who holds it: each side's mapping stays good whenever and however the
// other one ends, so a late copy lands in memory that nobody else was given.
// Thread safety: one thread at a time.
class CudaWindow {
 public:
  // Memory of `device`; `handle` names it to another process.
  // REQUIRES: bytes is a multiple of 2 MiB
  static Status Create(int32_t device, uint64_t bytes, std::unique_ptr<CudaWindow>* out,
                       UniqueFd* handle);
  // Another process's window, for `device` to write to. Fails where `handle` is
  // no such memory or too small, and where `device` cannot reach it.
  static Status Import(int32_t device, const UniqueFd& handle, uint64_t bytes,
                       std::unique_ptr<CudaWindow>* out);
  // REQUIRES: no copy of this process to or from it is under way
  ~CudaWindow();
  CudaWindow(const CudaWindow&) = delete;
  CudaWindow& operator=(const CudaWindow&) = delete;

  [[nodiscard]] CuAddress address() const { return address_; }

 private:
  CudaWindow(const CudaDriver& driver, uint64_t bytes) : driver_(driver), bytes_(bytes) {}
  Status Map(int32_t device, CuAllocation allocation);

  const CudaDriver& driver_;
  const uint64_t bytes_;
  CuAddress address_ = 0;
  bool mapped_ = false;
};

}  // namespace dlcore

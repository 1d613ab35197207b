#include "transport/cuda_window.h"

namespace dlcore {

Status CudaWindow::Create(int32_t device, uint64_t bytes, std::unique_ptr<CudaWindow>* out,
                          UniqueFd* handle) {
  const CudaDriver* driver = nullptr;
  if (Status s = LoadCudaDriver(&driver); !s.ok()) return s;
  const CuAllocationProp prop{.location = {.id = device}};
  CuAllocation allocation = 0;
  Status s = driver->Check(driver->MemCreate(&allocation, bytes, &prop, 0), "cuMemCreate");
  if (!s.ok()) return s;
  int fd = -1;
  s = driver->Check(driver->MemExportToShareableHandle(&fd, allocation, kCuHandleTypePosixFd, 0),
                    "cuMemExportToShareableHandle");
  *handle = UniqueFd(fd);
  std::unique_ptr<CudaWindow> window(new CudaWindow(*driver, bytes));
  if (s.ok()) s = window->Map(device, allocation);
  driver->MemRelease(allocation);  // the mapping and the descriptor keep it
  if (s.ok()) *out = std::move(window);
  return s;
}

Status CudaWindow::Import(int32_t device, const UniqueFd& handle, uint64_t bytes,
                          std::unique_ptr<CudaWindow>* out) {
  const CudaDriver* driver = nullptr;
  if (Status s = LoadCudaDriver(&driver); !s.ok()) return s;
  if (!handle.valid()) return Status::InvalidArgument("no handle of a window came");
  CuAllocation allocation = 0;
  void* const name = reinterpret_cast<void*>(static_cast<intptr_t>(handle.get()));
  Status s =
      driver->Check(driver->MemImportFromShareableHandle(&allocation, name, kCuHandleTypePosixFd),
                    "cuMemImportFromShareableHandle");
  if (!s.ok()) return s;
  std::unique_ptr<CudaWindow> window(new CudaWindow(*driver, bytes));
  s = window->Map(device, allocation);
  driver->MemRelease(allocation);
  if (s.ok()) *out = std::move(window);
  return s;
}

Status CudaWindow::Map(int32_t device, CuAllocation allocation) {
  const CuAccessDesc access{.location = {.id = device}};
  Status s =
      driver_.Check(driver_.MemAddressReserve(&address_, bytes_, 0, 0, 0), "cuMemAddressReserve");
  if (s.ok()) s = driver_.Check(driver_.MemMap(address_, bytes_, 0, allocation, 0), "cuMemMap");
  mapped_ = s.ok();
  if (s.ok()) {
    s = driver_.Check(driver_.MemSetAccess(address_, bytes_, &access, 1), "cuMemSetAccess");
  }
  return s;
}

CudaWindow::~CudaWindow() {
  if (mapped_) driver_.MemUnmap(address_, bytes_);
  if (address_ != 0) driver_.MemAddressFree(address_, bytes_);
}

}  // namespace dlcore

#include <cstring>
#include <new>

#include "device/device.h"

namespace dlcore {
namespace {

// What the arena's fields and vector loads want.
constexpr std::align_val_t kAlignment{64};

class CpuStream final : public Stream {
 public:
  Status CopyToDevice(uint64_t device_address, std::span<const std::byte> host) override {
    std::memcpy(reinterpret_cast<void*>(device_address), host.data(), host.size());
    return {};
  }

  Status CopyToHost(std::span<std::byte> host, uint64_t device_address) override {
    std::memcpy(host.data(), reinterpret_cast<const void*>(device_address), host.size());
    return {};
  }

  [[nodiscard]] void* handle() const override { return nullptr; }
};

class CpuEvent final : public Event {
 public:
  Status Record(Stream& /*stream*/) override { return {}; }
  Status Query(bool* done) override {
    *done = true;
    return {};
  }
};

class CpuBuffer final : public PinnedBuffer {
 public:
  explicit CpuBuffer(size_t bytes)
      : bytes_(static_cast<std::byte*>(::operator new(bytes, kAlignment)), bytes) {
    std::memset(bytes_.data(), 0, bytes);
  }
  ~CpuBuffer() override { ::operator delete(bytes_.data(), kAlignment); }
  CpuBuffer(const CpuBuffer&) = delete;
  CpuBuffer& operator=(const CpuBuffer&) = delete;

  [[nodiscard]] std::span<std::byte> bytes() override { return bytes_; }

 private:
  std::span<std::byte> bytes_;
};

class CpuDevice final : public Device {
 public:
  Status BindThread() override { return {}; }
  [[nodiscard]] bool asynchronous() const override { return false; }

  Status NewStream(std::unique_ptr<Stream>* out) override {
    *out = std::make_unique<CpuStream>();
    return {};
  }

  Status NewEvent(std::unique_ptr<Event>* out) override {
    *out = std::make_unique<CpuEvent>();
    return {};
  }

  Status NewPinnedBuffer(size_t bytes, std::unique_ptr<PinnedBuffer>* out) override {
    *out = std::make_unique<CpuBuffer>(bytes);
    return {};
  }
};

}  // namespace

std::unique_ptr<Device> NewCpuDevice() { return std::make_unique<CpuDevice>(); }

}  // namespace dlcore

#include <cstring>
#include <optional>
#include <string>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "transport/data_plane.h"
#include "transport/registry.h"
#include "transport/same_host.h"
#include "transport/wire_codec.h"

// Shared memory within a host: the reader passes a sealed memfd over the Unix
// socket, the owner copies answers into it. One copy on each side, no kernel
// copy, and the pool itself is never mapped by anyone else.
namespace dlcore {
namespace {

constexpr std::string_view kName = "shm";
constexpr uint32_t kSlots = 4;
constexpr uint64_t kSlotBytes = 4 << 20;
constexpr uint32_t kMaxSlots = 64;  // what an owner accepts
constexpr uint64_t kMaxSlotBytes = 64 << 20;
constexpr unsigned kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

Status SystemError(const char* what) {
  return Status::Unavailable(std::string(what) + ": " + std::strerror(errno));
}

class Mapping {
 public:
  Mapping() = default;
  ~Mapping() {
    pin_.reset();
    if (address_ != nullptr) munmap(address_, bytes_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  // Copies between it and the pool of `memory` may run from now on.
  Status Map(int fd, size_t bytes, PoolMemory* memory) {
    void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED) return SystemError("mmap of the shared window");
    address_ = address;
    bytes_ = bytes;
    pin_.emplace(memory, std::span(data(), bytes));
    return Status::Ok();
  }
  [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(address_); }

 private:
  void* address_ = nullptr;
  size_t bytes_ = 0;
  std::optional<HostPin> pin_;
};

class ShmOwnerPlane final : public OwnerPlane {
 public:
  explicit ShmOwnerPlane(PoolMemory* memory) : memory_(memory) {}

  Status Attach(const Blob& offer, UniqueFd passed_fd, Blob*) override {
    WireReader r(offer);
    num_slots_ = r.Get<uint32_t>();
    slot_bytes_ = r.Get<uint64_t>();
    if (!r.AtEnd() || num_slots_ == 0 || num_slots_ > kMaxSlots || slot_bytes_ == 0 ||
        slot_bytes_ > kMaxSlotBytes) {
      return Status::InvalidArgument("malformed shm offer");
    }
    return MapWindow(passed_fd.get(), num_slots_ * slot_bytes_);
  }
  [[nodiscard]] uint32_t num_slots() const override { return num_slots_; }
  [[nodiscard]] uint64_t slot_bytes() const override { return slot_bytes_; }
  Status Begin(uint32_t slot, std::span<const MemoryRange> sources, Blob*) override {
    return memory_->Gather(sources, window_.data() + slot * slot_bytes_);
  }
  Status Poll(bool* done) override {
    *done = true;
    return Status::Ok();
  }

 private:
  // A window that could shrink, or whose pages cannot be had, would kill this
  // process with SIGBUS: both are ruled out here.
  Status MapWindow(int fd, uint64_t bytes) {
    struct stat info {};
    if (fd < 0 || fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) ||
        static_cast<uint64_t>(info.st_size) != bytes) {
      return Status::InvalidArgument("the shared window has another size than offered");
    }
    const int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
      return Status::InvalidArgument("the shared window is not sealed against shrinking");
    }
    if (fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, info.st_size) != 0) {
      return SystemError("no memory for the shared window");
    }
    return window_.Map(fd, bytes, memory_);
  }

  PoolMemory* memory_;
  uint32_t num_slots_ = 0;
  uint64_t slot_bytes_ = 0;
  Mapping window_;
};

class ShmReaderPlane final : public ReaderPlane {
 public:
  explicit ShmReaderPlane(PoolMemory* memory) : memory_(memory) {}

  Status Offer(Blob* offer, int* pass_fd) override {
    fd_ = UniqueFd(memfd_create("dlcore-kv-window", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    constexpr uint64_t kBytes = kSlots * kSlotBytes;
    if (!fd_.valid() || ftruncate(fd_.get(), kBytes) != 0 ||
        fcntl(fd_.get(), F_ADD_SEALS, kSeals) != 0) {
      return SystemError("memfd for the shared window");
    }
    if (Status s = window_.Map(fd_.get(), kBytes, memory_); !s.ok()) return s;
    WireWriter w;
    w.Put(kSlots);
    w.Put(kSlotBytes);
    *offer = w.Take();
    *pass_fd = fd_.get();
    return Status::Ok();
  }
  Status Accept(const Blob&) override { return Status::Ok(); }
  [[nodiscard]] uint32_t num_slots() const override { return kSlots; }
  [[nodiscard]] uint64_t slot_bytes() const override { return kSlotBytes; }
  Status Scatter(uint32_t slot, std::span<const std::byte> payload,
                 std::span<const MemoryRange> to) override {
    if (!payload.empty()) return Status::Unavailable("the owner sent inline bytes over shm");
    return memory_->Scatter(window_.data() + slot * kSlotBytes, to);
  }

 private:
  PoolMemory* memory_;
  UniqueFd fd_;
  Mapping window_;
};

Status Available() {
  return HostId().empty() ? Status::Unavailable("/proc/sys/kernel/random/boot_id is not readable")
                          : Status::Ok();
}

Status NewServer(const TransportServerOptions& options, std::unique_ptr<TransportServer>* out) {
  PoolMemory* memory = options.memory;
  return NewSameHostServer(
      kName, [memory] { return std::make_unique<ShmOwnerPlane>(memory); }, options, out);
}

Status NewClient(const std::string& endpoint, const TransportClientOptions& options,
                 std::unique_ptr<TransportClient>* out) {
  PoolMemory* memory = options.memory;
  return NewSameHostClient(
      kName, endpoint, [memory] { return std::make_unique<ShmReaderPlane>(memory); }, options, out);
}

}  // namespace

const TransportFactory& ShmTransport() {
  static constexpr TransportFactory kFactory{.name = kName,
                                             .same_host = true,
                                             .device_memory = false,
                                             .available = &Available,
                                             .new_server = &NewServer,
                                             .new_client = &NewClient};
  return kFactory;
}

}  // namespace dlcore

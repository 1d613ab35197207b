#include <array>
#include <string>
#include <utility>
#include <vector>

#include "transport/cuda_stream.h"
#include "transport/cuda_window.h"
#include "transport/data_plane.h"
#include "transport/registry.h"
#include "transport/same_host.h"
#include "transport/wire_codec.h"

// GPU to GPU within a host (NVLink or PCIe): the reader passes a window on its
// GPU to the owner, who copies answers into it on a stream of its own. The
// owner's pool is never exported.
namespace dlcore {
namespace {

constexpr std::string_view kName = "cuda_ipc";
constexpr uint32_t kSlots = 4;
constexpr uint64_t kSlotBytes = 64 << 20;
constexpr uint32_t kMaxSlots = 64;  // what an owner accepts
constexpr size_t kCopies = 2;       // one is prepared while another runs

class CudaOwnerPlane final : public OwnerPlane {
 public:
  explicit CudaOwnerPlane(PoolMemory* memory) : memory_(memory) {}

  Status Attach(const Blob& offer, UniqueFd passed_fd, Blob*) override {
    WireReader r(offer);
    num_slots_ = r.Get<uint32_t>();
    if (!r.AtEnd() || num_slots_ == 0 || num_slots_ > kMaxSlots) {
      return Status::InvalidArgument("malformed cuda_ipc offer");
    }
    const int32_t device = memory_->cuda_device();
    for (auto& stream : streams_) {
      if (Status s = CudaCopyStream::Create(device, &stream); !s.ok()) return s;
    }
    return CudaWindow::Import(device, passed_fd, num_slots_ * kSlotBytes, &window_);
  }
  [[nodiscard]] uint32_t num_slots() const override { return num_slots_; }
  [[nodiscard]] uint64_t slot_bytes() const override { return kSlotBytes; }
  [[nodiscard]] size_t max_copies() const override { return kCopies; }
  Status Begin(uint32_t slot, std::span<const MemoryRange> sources, Blob*) override {
    CudaCopyStream& stream = *streams_[num_begun_ % kCopies];
    if (Status s = stream.Bind(); !s.ok()) return s;
    CuAddress to = window_->address() + slot * kSlotBytes;
    copies_.clear();
    for (const MemoryRange& source : sources) {
      copies_.push_back({to, source.address, source.length});
      to += source.length;
    }
    if (Status s = stream.Copy(copies_); !s.ok()) return s;
    if (Status s = stream.Mark(); !s.ok()) return s;
    ++num_begun_;
    return Status::Ok();
  }
  Status Poll(bool* done) override {
    const Status s = streams_[num_ended_ % kCopies]->Query(done);
    if (s.ok() && *done) ++num_ended_;
    return s;
  }

 private:
  PoolMemory* memory_;
  std::unique_ptr<CudaWindow> window_;
  // They take turns, go first, and wait for their copies.
  std::array<std::unique_ptr<CudaCopyStream>, kCopies> streams_;
  std::vector<CudaCopy> copies_;  // scratch
  uint32_t num_slots_ = 0;
  size_t num_begun_ = 0;
  size_t num_ended_ = 0;
};

class CudaReaderPlane final : public ReaderPlane {
 public:
  explicit CudaReaderPlane(PoolMemory* memory) : memory_(memory) {}

  Status Offer(Blob* offer, int* pass_fd) override {
    const int32_t device = memory_->cuda_device();
    if (Status s = CudaCopyStream::Create(device, &stream_); !s.ok()) return s;
    if (Status s = CudaWindow::Create(device, kSlots * kSlotBytes, &window_, &handle_); !s.ok()) {
      return s;
    }
    WireWriter w;
    w.Put(kSlots);
    *offer = w.Take();
    *pass_fd = handle_.get();
    return Status::Ok();
  }
  Status Accept(const Blob&) override {
    handle_.Reset();  // the owner has its own by now
    return Status::Ok();
  }
  [[nodiscard]] uint32_t num_slots() const override { return kSlots; }
  [[nodiscard]] uint64_t slot_bytes() const override { return kSlotBytes; }
  Status Scatter(uint32_t slot, std::span<const std::byte> payload,
                 std::span<const MemoryRange> to) override {
    if (!payload.empty()) return Status::Unavailable("the owner sent inline bytes over cuda_ipc");
    if (Status s = stream_->Bind(); !s.ok()) return s;
    CuAddress from = window_->address() + slot * kSlotBytes;
    copies_.clear();
    for (const MemoryRange& range : to) {
      copies_.push_back({range.address, from, range.length});
      from += range.length;
    }
    if (Status s = stream_->Copy(copies_); !s.ok()) return s;
    return stream_->Synchronize();
  }

 private:
  PoolMemory* memory_;
  UniqueFd handle_;
  std::unique_ptr<CudaWindow> window_;
  std::unique_ptr<CudaCopyStream> stream_;  // goes first, and waits for its copies
  std::vector<CudaCopy> copies_;
};

Status Available() {
  const CudaDriver* driver = nullptr;
  return LoadCudaDriver(&driver);
}

Status CheckMemory(const PoolMemory* memory) {
  return memory != nullptr && memory->cuda_device() >= 0
             ? Status::Ok()
             : Status::InvalidArgument("cuda_ipc needs the pool in GPU memory");
}

Status NewServer(const TransportServerOptions& options, std::unique_ptr<TransportServer>* out) {
  PoolMemory* memory = options.memory;
  if (Status s = CheckMemory(memory); !s.ok()) return s;
  return NewSameHostServer(
      kName, [memory] { return std::make_unique<CudaOwnerPlane>(memory); }, options, out);
}

Status NewClient(const std::string& endpoint, const TransportClientOptions& options,
                 std::unique_ptr<TransportClient>* out) {
  PoolMemory* memory = options.memory;
  if (Status s = CheckMemory(memory); !s.ok()) return s;
  return NewSameHostClient(
      kName, endpoint, [memory] { return std::make_unique<CudaReaderPlane>(memory); }, options,
      out);
}

}  // namespace

const TransportFactory& CudaIpcTransport() {
  static constexpr TransportFactory kFactory{.name = kName,
                                             .same_host = true,
                                             .device_memory = true,
                                             .available = &Available,
                                             .new_server = &NewServer,
                                             .new_client = &NewClient};
  return kFactory;
}

}  // namespace dlcore

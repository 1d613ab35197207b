#include <cstring>
#include <string>
#include <utility>

#include "transport/cuda_stream.h"
#include "transport/data_plane.h"
#include "transport/lease_client.h"
#include "transport/lease_server.h"
#include "transport/registry.h"
#include "transport/wire_codec.h"

// GPU to GPU within a host (NVLink or PCIe): the reader exports a window on its
// GPU, the owner copies answers into it on a stream of its own. The owner's pool
// is never exported.
namespace dlcore {
namespace {

constexpr std::string_view kName = "cuda_ipc";
constexpr uint32_t kSlots = 4;
constexpr uint64_t kSlotBytes = 64 << 20;
constexpr uint32_t kMaxSlots = 64;  // what an owner accepts

class CudaOwnerPlane final : public OwnerPlane {
 public:
  explicit CudaOwnerPlane(PoolMemory* memory) : memory_(memory) {}
  ~CudaOwnerPlane() override {
    if (window_ == 0 || !stream_->Bind().ok()) return;
    if (stream_->Synchronize().ok()) stream_->driver().IpcCloseMemHandle(window_);
  }

  Status Attach(const Blob& offer, UniqueFd, Blob*) override {
    WireReader r(offer);
    CuIpcMemHandle handle;
    const auto raw = r.GetBytes(sizeof(handle));
    num_slots_ = r.Get<uint32_t>();
    if (!r.AtEnd() || num_slots_ == 0 || num_slots_ > kMaxSlots) {
      return Status::InvalidArgument("malformed cuda_ipc offer");
    }
    std::memcpy(&handle, raw.data(), sizeof(handle));
    if (Status s = CudaCopyStream::Create(memory_->cuda_device(), &stream_); !s.ok()) return s;
    const CudaDriver& cuda = stream_->driver();
    return cuda.Check(cuda.IpcOpenMemHandle(&window_, handle, kCuIpcMemLazyEnablePeerAccess),
                      "cuIpcOpenMemHandle");
  }
  [[nodiscard]] uint32_t num_slots() const override { return num_slots_; }
  [[nodiscard]] uint64_t slot_bytes() const override { return kSlotBytes; }
  Status Begin(uint32_t slot, std::span<const MemoryRange> sources, Blob*) override {
    if (Status s = stream_->Bind(); !s.ok()) return s;
    CuAddress to = window_ + slot * kSlotBytes;
    for (const MemoryRange& source : sources) {
      if (Status s = stream_->Copy(to, source.address, source.length); !s.ok()) return s;
      to += source.length;
    }
    return stream_->Mark();
  }
  Status Poll(bool* done) override { return stream_->Query(done); }

 private:
  PoolMemory* memory_;
  std::unique_ptr<CudaCopyStream> stream_;
  CuAddress window_ = 0;
  uint32_t num_slots_ = 0;
};

class CudaReaderPlane final : public ReaderPlane {
 public:
  explicit CudaReaderPlane(PoolMemory* memory) : memory_(memory) {}
  ~CudaReaderPlane() override {
    if (window_ != 0 && stream_->Bind().ok()) stream_->driver().MemFree(window_);
  }

  Status Offer(Blob* offer, int*) override {
    if (Status s = CudaCopyStream::Create(memory_->cuda_device(), &stream_); !s.ok()) return s;
    const CudaDriver& cuda = stream_->driver();
    CuIpcMemHandle handle;
    Status s = cuda.Check(cuda.MemAlloc(&window_, kSlots * kSlotBytes), "cuMemAlloc");
    if (s.ok()) s = cuda.Check(cuda.IpcGetMemHandle(&handle, window_), "cuIpcGetMemHandle");
    if (!s.ok()) return s;
    WireWriter w;
    w.PutBytes(std::as_bytes(std::span(handle.reserved)));
    w.Put(kSlots);
    *offer = w.Take();
    return Status::Ok();
  }
  Status Accept(const Blob&) override { return Status::Ok(); }
  [[nodiscard]] uint32_t num_slots() const override { return kSlots; }
  [[nodiscard]] uint64_t slot_bytes() const override { return kSlotBytes; }
  Status Scatter(uint32_t slot, std::span<const std::byte> payload,
                 std::span<const MemoryRange> to) override {
    if (!payload.empty()) return Status::Unavailable("the owner sent inline bytes over cuda_ipc");
    if (Status s = stream_->Bind(); !s.ok()) return s;
    CuAddress from = window_ + slot * kSlotBytes;
    for (const MemoryRange& range : to) {
      if (Status s = stream_->Copy(range.address, from, range.length); !s.ok()) return s;
      from += range.length;
    }
    return stream_->Synchronize();
  }

 private:
  PoolMemory* memory_;
  std::unique_ptr<CudaCopyStream> stream_;
  CuAddress window_ = 0;
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
  if (Status s = ValidateServerOptions(options); !s.ok()) return s;
  if (Status s = CheckMemory(options.memory); !s.ok()) return s;
  ServerSpec spec;
  if (Status s = ListenUnix(options.socket_dir, &spec.listener, &spec.unlink_path); !s.ok()) {
    return s;
  }
  spec.transport = kName;
  spec.endpoint = "cuda_ipc://" + HostId() + spec.unlink_path;
  spec.new_plane = [memory = options.memory] { return std::make_unique<CudaOwnerPlane>(memory); };
  *out = std::make_unique<LeaseServer>(std::move(spec), options);
  return Status::Ok();
}

Status NewClient(const std::string& endpoint, const TransportClientOptions& options,
                 std::unique_ptr<TransportClient>* out) {
  if (Status s = CheckMemory(options.memory); !s.ok()) return s;
  const std::string_view address = EndpointAddress(endpoint);
  const size_t slash = address.find('/');
  if (slash == std::string_view::npos) {
    return Status::InvalidArgument("endpoint '" + endpoint + "' must be cuda_ipc://HOST_ID/PATH");
  }
  ClientSpec spec;
  spec.transport = kName;
  spec.connect = [path = std::string(address.substr(slash))](UniqueFd* fd) {
    return StartConnectUnix(path, fd);
  };
  spec.new_plane = [memory = options.memory] { return std::make_unique<CudaReaderPlane>(memory); };
  *out = std::make_unique<LeaseClient>(std::move(spec), options);
  return Status::Ok();
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

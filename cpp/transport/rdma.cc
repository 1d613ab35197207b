#include <chrono>
#include <optional>
#include <string>
#include <utility>

#include "transport/any_host.h"
#include "transport/data_plane.h"
#include "transport/registry.h"
#include "transport/verbs.h"
#include "transport/wire_codec.h"

// RDMA (InfiniBand, RoCE) through libibverbs. Control messages go over TCP; the
// owner writes answers straight into the reader's window. The reader hands out a
// key to its window, the owner none to its pool, so what RDMA hardware lets a
// peer do never exceeds what the lease check allowed.
namespace dlcore {
namespace {

constexpr std::string_view kName = "rdma";
constexpr uint32_t kSlots = 4;
constexpr uint64_t kSlotBytes = 4 << 20;
constexpr uint32_t kMaxSlots = 64;                // what an owner accepts
constexpr std::chrono::seconds kWriteTimeout{5};  // above what the device itself retries

class RdmaOwnerPlane final : public OwnerPlane {
 public:
  RdmaOwnerPlane(PoolMemory* memory, std::string device)
      : memory_(memory), device_(std::move(device)) {}

  Status Attach(const Blob& offer, UniqueFd, Blob* answer) override {
    WireReader r(offer);
    const QueuePairAddress peer = GetAddress(&r);
    window_ = r.Get<uint64_t>();
    rkey_ = r.Get<uint32_t>();
    num_slots_ = r.Get<uint32_t>();
    if (!r.AtEnd() || num_slots_ == 0 || num_slots_ > kMaxSlots) {
      return Status::InvalidArgument("malformed rdma offer");
    }
    // The flush after each write reads one byte of the peer's window into ours.
    if (Status s = VerbsEndpoint::Create(device_, kSlotBytes, 0, &endpoint_); !s.ok()) return s;
    pin_.emplace(memory_, std::span(endpoint_->memory(), kSlotBytes));
    if (Status s = endpoint_->Connect(peer); !s.ok()) return s;
    WireWriter w;
    PutAddress(endpoint_->address(), &w);
    *answer = w.Take();
    return Status::Ok();
  }
  [[nodiscard]] uint32_t num_slots() const override { return num_slots_; }
  [[nodiscard]] uint64_t slot_bytes() const override { return kSlotBytes; }
  Status Begin(uint32_t slot, std::span<const MemoryRange> sources, Blob*) override {
    if (Status s = memory_->Gather(sources, endpoint_->memory()); !s.ok()) return s;
    deadline_ = std::chrono::steady_clock::now() + kWriteTimeout;
    return endpoint_->PostWrite(TotalBytes(sources), window_ + slot * kSlotBytes, rkey_);
  }
  Status Poll(bool* done) override {
    if (Status s = endpoint_->PollWrite(done); !s.ok() || *done) return s;
    return std::chrono::steady_clock::now() < deadline_
               ? Status::Ok()
               : Status::DeadlineExceeded("rdma: the write did not end");
  }

 private:
  PoolMemory* memory_;
  const std::string device_;
  std::unique_ptr<VerbsEndpoint> endpoint_;
  std::optional<HostPin> pin_;  // of the endpoint's memory, so it goes first
  uint64_t window_ = 0;
  uint32_t rkey_ = 0;
  uint32_t num_slots_ = 0;
  TimePoint deadline_;
};

class RdmaReaderPlane final : public ReaderPlane {
 public:
  RdmaReaderPlane(PoolMemory* memory, std::string device)
      : memory_(memory), device_(std::move(device)) {}

  Status Offer(Blob* offer, int*) override {
    constexpr int kAccess = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
    if (Status s = VerbsEndpoint::Create(device_, kSlots * kSlotBytes, kAccess, &endpoint_);
        !s.ok()) {
      return s;
    }
    pin_.emplace(memory_, std::span(endpoint_->memory(), kSlots * kSlotBytes));
    WireWriter w;
    PutAddress(endpoint_->address(), &w);
    w.Put(reinterpret_cast<uint64_t>(endpoint_->memory()));
    w.Put(endpoint_->rkey());
    w.Put(kSlots);
    *offer = w.Take();
    return Status::Ok();
  }
  Status Accept(const Blob& answer) override {
    WireReader r(answer);
    const QueuePairAddress peer = GetAddress(&r);
    if (!r.AtEnd()) return Status::InvalidArgument("malformed rdma answer");
    return endpoint_->Connect(peer);
  }
  [[nodiscard]] uint32_t num_slots() const override { return kSlots; }
  [[nodiscard]] uint64_t slot_bytes() const override { return kSlotBytes; }
  Status Scatter(uint32_t slot, std::span<const std::byte> payload,
                 std::span<const MemoryRange> to) override {
    if (!payload.empty()) return Status::Unavailable("the owner sent inline bytes over rdma");
    return memory_->Scatter(endpoint_->memory() + slot * kSlotBytes, to);
  }

 private:
  PoolMemory* memory_;
  const std::string device_;
  std::unique_ptr<VerbsEndpoint> endpoint_;
  std::optional<HostPin> pin_;  // of the endpoint's memory, so it goes first
};

Status Available() { return CheckVerbsDevice({}); }

Status NewServer(const TransportServerOptions& options, std::unique_ptr<TransportServer>* out) {
  if (Status s = CheckVerbsDevice(options.device); !s.ok()) return s;
  OwnerPlaneFactory new_plane = [memory = options.memory, device = options.device] {
    return std::make_unique<RdmaOwnerPlane>(memory, device);
  };
  return NewAnyHostServer(kName, std::move(new_plane), options, out);
}

Status NewClient(const std::string& endpoint, const TransportClientOptions& options,
                 std::unique_ptr<TransportClient>* out) {
  ReaderPlaneFactory new_plane = [memory = options.memory, device = options.device] {
    return std::make_unique<RdmaReaderPlane>(memory, device);
  };
  return NewAnyHostClient(kName, endpoint, std::move(new_plane), options, out);
}

}  // namespace

const TransportFactory& RdmaTransport() {
  static constexpr TransportFactory kFactory{.name = kName,
                                             .same_host = false,
                                             .device_memory = false,
                                             .available = &Available,
                                             .new_server = &NewServer,
                                             .new_client = &NewClient};
  return kFactory;
}

}  // namespace dlcore

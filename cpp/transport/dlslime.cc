#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "transport/any_host.h"
#include "transport/data_plane.h"
#include "transport/dlslime_library.h"
#include "transport/pool_memory.h"
#include "transport/registry.h"
#include "transport/verbs.h"
#include "transport/wire_codec.h"

// RDMA through dlslime. Control messages go over TCP. The owner gathers an answer, once
// the lease check has passed it, into a slot of memory made for this one reader; the
// reader reads the slot. The owner's pool is never registered, so what RDMA hardware
// lets a peer do never exceeds what the lease check allowed.
namespace dlcore {
namespace {

constexpr std::string_view kName = "dlslime";
constexpr uint32_t kSlots = 4;
constexpr uint64_t kSlotBytes = 1 << 20;
constexpr uint32_t kMaxSlots = 8;  // what an owner accepts

// dlslime aborts the process, or worse, where the verbs refuse a resource or an address.
// A queue pair of our own meets the refusal first.
class Scout {
 public:
  Status Enter(const std::string& device) {
    return VerbsEndpoint::Create(device, 4096, 0, &endpoint_);
  }
  Status Reach(const QueuePairAddress& peer) {
    if (peer.mtu < IBV_MTU_256 || peer.mtu > IBV_MTU_4096) {
      return Status::InvalidArgument("malformed dlslime address");
    }
    const std::unique_ptr<VerbsEndpoint> endpoint = std::move(endpoint_);
    return endpoint->Connect(peer);
  }

 private:
  std::unique_ptr<VerbsEndpoint> endpoint_;
};

class DlslimeOwnerPlane final : public OwnerPlane {
 public:
  DlslimeOwnerPlane(PoolMemory* memory, std::string name, std::shared_ptr<DlslimeDevice> device)
      : memory_(memory), name_(std::move(name)), device_(std::move(device)) {}

  Status Attach(const Blob& offer, UniqueFd, Blob* answer) override {
    WireReader r(offer);
    const QueuePairAddress peer = GetAddress(&r);
    num_slots_ = r.Get<uint32_t>();
    if (!r.AtEnd() || num_slots_ == 0 || num_slots_ > kMaxSlots) {
      return Status::InvalidArgument("malformed dlslime offer");
    }
    Scout scout;
    if (Status s = scout.Enter(name_); !s.ok()) return s;
    if (Status s = device_->NewEndpoint(num_slots_ * kSlotBytes, 0, &endpoint_); !s.ok()) return s;
    if (Status s = scout.Reach(peer); !s.ok()) return s;
    pin_.emplace(memory_, std::span(endpoint_->memory(), num_slots_ * kSlotBytes));
    // The owner reads nothing of the reader's.
    if (Status s = endpoint_->Connect(peer, {}); !s.ok()) return s;
    WireWriter w;
    PutAddress(endpoint_->address(), &w);
    w.Put(reinterpret_cast<uint64_t>(endpoint_->memory()));
    w.Put(endpoint_->rkey());
    *answer = w.Take();
    return Status::Ok();
  }
  [[nodiscard]] uint32_t num_slots() const override { return num_slots_; }
  [[nodiscard]] uint64_t slot_bytes() const override { return kSlotBytes; }
  Status Begin(uint32_t slot, std::span<const MemoryRange> sources, Blob*) override {
    return memory_->Gather(sources, endpoint_->memory() + slot * kSlotBytes);
  }
  Status Poll(bool* done) override {
    *done = true;
    return Status::Ok();
  }

 private:
  PoolMemory* memory_;
  const std::string name_;
  const std::shared_ptr<DlslimeDevice> device_;
  std::unique_ptr<DlslimeEndpoint> endpoint_;
  std::optional<HostPin> pin_;  // of the endpoint's memory, so it goes first
  uint32_t num_slots_ = 0;
};

class DlslimeReaderPlane final : public ReaderPlane {
 public:
  DlslimeReaderPlane(PoolMemory* memory, std::string name, std::shared_ptr<DlslimeDevice> device)
      : memory_(memory), name_(std::move(name)), device_(std::move(device)) {}

  Status Offer(Blob* offer, int*) override {
    if (Status s = scout_.Enter(name_); !s.ok()) return s;
    if (Status s = device_->NewEndpoint(kSlots * kSlotBytes, kSlots, &endpoint_); !s.ok()) return s;
    pin_.emplace(memory_, std::span(endpoint_->memory(), kSlots * kSlotBytes));
    WireWriter w;
    PutAddress(endpoint_->address(), &w);
    w.Put(kSlots);
    *offer = w.Take();
    return Status::Ok();
  }
  Status Accept(const Blob& answer) override {
    WireReader r(answer);
    const QueuePairAddress peer = GetAddress(&r);
    RemoteMemory slots{r.Get<uint64_t>(), kSlots * kSlotBytes, 0};
    slots.rkey = r.Get<uint32_t>();
    if (!r.AtEnd()) return Status::InvalidArgument("malformed dlslime answer");
    if (Status s = scout_.Reach(peer); !s.ok()) return s;
    return endpoint_->Connect(peer, slots);
  }
  [[nodiscard]] uint32_t num_slots() const override { return kSlots; }
  [[nodiscard]] uint64_t slot_bytes() const override { return kSlotBytes; }
  Status BeginFetch(uint32_t slot, uint64_t bytes, std::function<void()> wake) override {
    return endpoint_->PostRead(slot, slot * kSlotBytes, bytes, std::move(wake));
  }
  Status PollFetch(uint32_t slot, bool* done) override { return endpoint_->PollRead(slot, done); }
  Status Scatter(uint32_t slot, std::span<const std::byte> payload,
                 std::span<const MemoryRange> to) override {
    if (!payload.empty()) return Status::Unavailable("the owner sent inline bytes over dlslime");
    return memory_->Scatter(endpoint_->memory() + slot * kSlotBytes, to);
  }

 private:
  PoolMemory* memory_;
  const std::string name_;
  const std::shared_ptr<DlslimeDevice> device_;
  Scout scout_;
  std::unique_ptr<DlslimeEndpoint> endpoint_;
  std::optional<HostPin> pin_;  // of the endpoint's memory, so it goes first
};

// The device is `name`, or the first with an active port.
Status OpenDevice(const std::string& name, std::string* found,
                  std::shared_ptr<DlslimeDevice>* out) {
  if (Status s = CheckDlslimeBuilt(); !s.ok()) return s;
  if (Status s = FindVerbsDevice(name, found); !s.ok()) return s;
  const DlslimePlugin* plugin = nullptr;
  if (Status s = LoadDlslime(&plugin); !s.ok()) return s;
  return plugin->open(*found, out);
}

Status Available() {
  if (Status s = CheckDlslimeBuilt(); !s.ok()) return s;
  if (Status s = CheckVerbsDevice({}); !s.ok()) return s;
  const DlslimePlugin* plugin = nullptr;
  return LoadDlslime(&plugin);
}

Status NewServer(const TransportServerOptions& options, std::unique_ptr<TransportServer>* out) {
  std::string name;
  std::shared_ptr<DlslimeDevice> device;
  if (Status s = OpenDevice(options.device, &name, &device); !s.ok()) return s;
  OwnerPlaneFactory new_plane = [memory = options.memory, name, device] {
    return std::make_unique<DlslimeOwnerPlane>(memory, name, device);
  };
  return NewAnyHostServer(kName, std::move(new_plane), options, out);
}

Status NewClient(const std::string& endpoint, const TransportClientOptions& options,
                 std::unique_ptr<TransportClient>* out) {
  std::string name;
  std::shared_ptr<DlslimeDevice> device;
  if (Status s = OpenDevice(options.device, &name, &device); !s.ok()) return s;
  ReaderPlaneFactory new_plane = [memory = options.memory, name, device] {
    return std::make_unique<DlslimeReaderPlane>(memory, name, device);
  };
  return NewAnyHostClient(kName, endpoint, std::move(new_plane), options, out);
}

}  // namespace

const TransportFactory& DlslimeTransport() {
  static constexpr TransportFactory kFactory{.name = kName,
                                             .same_host = false,
                                             .device_memory = false,
                                             .on_request = true,
                                             .available = &Available,
                                             .new_server = &NewServer,
                                             .new_client = &NewClient};
  return kFactory;
}

}  // namespace dlcore

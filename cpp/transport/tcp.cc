#include <string>
#include <utility>

#include "transport/any_host.h"
#include "transport/data_plane.h"
#include "transport/registry.h"

// TCP between any two hosts: payload travels inside the answer.
namespace dlcore {
namespace {

constexpr std::string_view kName = "tcp";
constexpr uint32_t kSlots = 8;  // answers under way per connection

class TcpOwnerPlane final : public OwnerPlane {
 public:
  explicit TcpOwnerPlane(PoolMemory* memory) : memory_(memory) {}

  Status Attach(const Blob& offer, UniqueFd, Blob*) override {
    return offer.empty() ? Status::Ok() : Status::InvalidArgument("tcp offers nothing");
  }
  [[nodiscard]] uint32_t num_slots() const override { return kSlots; }
  [[nodiscard]] uint64_t slot_bytes() const override { return kMaxInlineBytes; }
  Status Begin(uint32_t, std::span<const MemoryRange> sources, Blob* reply) override {
    const size_t head = reply->size();
    reply->resize(head + TotalBytes(sources));
    return memory_->Gather(sources, reply->data() + head);
  }
  Status Poll(bool* done) override {
    *done = true;
    return Status::Ok();
  }

 private:
  PoolMemory* memory_;
};

class TcpReaderPlane final : public ReaderPlane {
 public:
  explicit TcpReaderPlane(PoolMemory* memory) : memory_(memory) {}

  Status Offer(Blob*, int*) override { return Status::Ok(); }
  Status Accept(const Blob&) override { return Status::Ok(); }
  [[nodiscard]] uint32_t num_slots() const override { return kSlots; }
  [[nodiscard]] uint64_t slot_bytes() const override { return kMaxInlineBytes; }
  Status Scatter(uint32_t, std::span<const std::byte> payload,
                 std::span<const MemoryRange> to) override {
    if (payload.size() != TotalBytes(to)) {
      return Status::Unavailable("the owner sent another number of bytes than asked for");
    }
    return memory_->Scatter(payload.data(), to);
  }

 private:
  PoolMemory* memory_;
};

Status Available() { return Status::Ok(); }

Status NewServer(const TransportServerOptions& options, std::unique_ptr<TransportServer>* out) {
  return NewAnyHostServer(
      kName, [memory = options.memory] { return std::make_unique<TcpOwnerPlane>(memory); }, options,
      out);
}

Status NewClient(const std::string& endpoint, const TransportClientOptions& options,
                 std::unique_ptr<TransportClient>* out) {
  return NewAnyHostClient(
      kName, endpoint,
      [memory = options.memory] { return std::make_unique<TcpReaderPlane>(memory); }, options, out);
}

}  // namespace

const TransportFactory& TcpTransport() {
  static constexpr TransportFactory kFactory{.name = kName,
                                             .same_host = false,
                                             .device_memory = false,
                                             .available = &Available,
                                             .new_server = &NewServer,
                                             .new_client = &NewClient};
  return kFactory;
}

}  // namespace dlcore

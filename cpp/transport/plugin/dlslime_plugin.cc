#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <fstream>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include <dlfcn.h>
#include <infiniband/verbs.h>
#include <unistd.h>

#include "base/sha256.h"
#include "dlslime/csrc/engine/rdma/memory_pool.h"
#include "dlslime/csrc/engine/rdma/rdma_assignment.h"
#include "dlslime/csrc/engine/rdma/rdma_channel.h"
#include "dlslime/csrc/engine/rdma/rdma_context.h"
#include "dlslime/csrc/engine/rdma/remote_memory_pool.h"
#include "transport/dlslime_library.h"

// The only file that sees dlslime's headers. It uses the layer below RDMAEndpoint,
// RDMAChannel with completion callbacks, because RDMAEndpoint can only be waited for
// without a limit, keeps a core busy, and opens its own bookkeeping to the peer.
// docs/disaggregation.md has the list.
namespace dlcore {
namespace {

constexpr uint8_t kPort = 1;

Status Failed(const std::string& what) { return Status::Unavailable("dlslime: " + what); }

// One read. dlslime's thread calls `assign`'s callback when it has ended.
struct ReadOperation {
  dlslime::RDMAAssign assign;
  std::mutex mutex;  // guards the rest
  std::function<void()> wake;
  bool ended = false;
  int32_t status = dlslime::RDMAAssign::SUCCESS;

  void End(int32_t how) {
    const std::lock_guard lock(mutex);
    status = how;
    ended = true;
    if (wake) wake();
  }
  // No call of `wake` begins or goes on after this.
  void Disarm() {
    const std::lock_guard lock(mutex);
    wake = nullptr;
  }
};

// Keeps operations alive for as long as dlslime's thread may touch them. That thread
// takes completions in order: the callback of one that came later shows that it is done
// with an earlier one. An operation whose queue pair was destroyed never completes, but
// its completion may still lie in the queue behind others: a queue's worth is waited for.
// Thread safety: any thread.
class Graveyard {
 public:
  void Count() { ++callbacks_; }
  void Bury(std::unique_ptr<ReadOperation> operation) {
    const std::lock_guard lock(mutex_);
    buried_.emplace_back(callbacks_.load(), std::move(operation));
    while (!buried_.empty() && callbacks_.load() - buried_.front().first > kEnough) {
      buried_.pop_front();
    }
  }

 private:
  static constexpr uint64_t kEnough = 4096;  // more than are ever under way on a device

  std::atomic<uint64_t> callbacks_{0};
  std::mutex mutex_;
  std::deque<std::pair<uint64_t, std::unique_ptr<ReadOperation>>> buried_;
};

class Device final : public DlslimeDevice, public std::enable_shared_from_this<Device> {
 public:
  Status Open(const std::string& name) {
    context_ = std::make_shared<dlslime::RDMAContext>();
    try {
      context_->init(name, kPort, "auto");
    } catch (const std::exception& error) {
      return Failed(error.what());
    }
    return Status::Ok();
  }
  Status NewEndpoint(size_t bytes, uint32_t num_reads,
                     std::unique_ptr<DlslimeEndpoint>* out) override;

  [[nodiscard]] const std::shared_ptr<dlslime::RDMAContext>& context() const { return context_; }
  [[nodiscard]] Graveyard& graveyard() { return graveyard_; }

 private:
  Graveyard graveyard_;                            // outlives the context's thread
  std::shared_ptr<dlslime::RDMAContext> context_;  // its destructor ends the thread
};

class Endpoint final : public DlslimeEndpoint {
 public:
  Endpoint(std::shared_ptr<Device> device, uint32_t num_reads)
      : device_(std::move(device)), reads_(num_reads) {}

  ~Endpoint() override {
    for (auto& read : reads_) {
      if (read != nullptr) read->Disarm();
    }
    channel_.reset();  // destroys the queue pair: nothing touches the memory any more
    pool_.reset();
    for (auto& read : reads_) {
      if (read != nullptr) device_->graveyard().Bury(std::move(read));
    }
  }

  // May throw what dlslime throws.
  Status Init(size_t bytes) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    memory_.reset(static_cast<std::byte*>(std::aligned_alloc(page, bytes)));
    if (memory_ == nullptr) return Failed("no memory for the window");
    std::memset(memory_.get(), 0, bytes);
    // A pool of its own is a protection domain of its own: this memory is all that the
    // peer's queue pair can reach.
    pool_ = std::make_shared<dlslime::RDMAMemoryPool>(device_->context());
    handle_ = pool_->registerMemoryRegion(reinterpret_cast<uintptr_t>(memory_.get()), bytes);
    remote_ = std::make_shared<dlslime::RDMARemoteMemoryPool>();
    channel_ = std::make_unique<dlslime::RDMAChannel>(pool_, remote_);
    if (channel_->init(device_->context(), 1, 0) != 0) return Failed("no queue pair");
    ReadAddress(channel_->channelInfo()[0]);
    return Status::Ok();
  }

  [[nodiscard]] std::byte* memory() const override { return memory_.get(); }
  [[nodiscard]] uint32_t rkey() const override { return pool_->get_mr_fast(handle_)->rkey; }
  [[nodiscard]] const QueuePairAddress& address() const override { return address_; }

  Status Connect(const QueuePairAddress& peer, const RemoteMemory& memory) override try {
    const dlslime::rdma_info_t info(peer.qp_num & kMask24, ToGid(peer.gid), -1, peer.lid,
                                    peer.psn & kMask24, peer.mtu);
    dlslime::json channel;
    channel.push_back(info.to_json());
    channel_->connect(channel);
    remote_handle_ = remote_->registerRemoteMemoryRegion(memory.address, memory.bytes, memory.rkey);
    return Status::Ok();
  } catch (const std::exception& error) {
    return Failed(error.what());
  }

  Status PostRead(uint32_t number, uint64_t offset, uint64_t length,
                  std::function<void()> wake) override {
    std::unique_ptr<ReadOperation>& read = reads_[number];
    if (read != nullptr) device_->graveyard().Bury(std::move(read));
    read = std::make_unique<ReadOperation>();
    read->wake = std::move(wake);
    dlslime::AssignmentBatch batch = {{static_cast<uintptr_t>(handle_),
                                       static_cast<uintptr_t>(remote_handle_), offset, offset,
                                       length}};
    read->assign.reset(dlslime::OpCode::READ, 0, batch,
                       [read = read.get(), graveyard = &device_->graveyard()](int status, int) {
                         graveyard->Count();
                         read->End(status);
                       });
    if (channel_->post_rc_oneside_batch(0, &read->assign, pool_) == 0) return Status::Ok();
    read.reset();  // never posted
    return Failed("the read was not taken");
  }

  Status PollRead(uint32_t number, bool* done) override {
    ReadOperation& read = *reads_[number];
    const std::lock_guard lock(read.mutex);
    *done = read.ended;
    return !read.ended || read.status == dlslime::RDMAAssign::SUCCESS
               ? Status::Ok()
               : Failed("the read failed: the peer is gone, or refused it");
  }

 private:
  static constexpr uint32_t kMask24 = 0xffffff;

  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };

  static ibv_gid ToGid(const std::array<uint8_t, 16>& bytes) {
    ibv_gid gid{};
    std::copy(bytes.begin(), bytes.end(), std::begin(gid.raw));
    return gid;
  }
  void ReadAddress(const dlslime::json& channel) {
    const dlslime::rdma_info_t info(channel);
    address_.qp_num = info.qpn;
    address_.psn = static_cast<uint32_t>(info.psn);
    address_.lid = info.lid;
    address_.mtu = static_cast<uint8_t>(info.mtu);
    std::copy(std::begin(info.gid.raw), std::end(info.gid.raw), address_.gid.begin());
  }

  const std::shared_ptr<Device> device_;
  std::unique_ptr<std::byte, Free> memory_;
  std::shared_ptr<dlslime::RDMAMemoryPool> pool_;
  std::shared_ptr<dlslime::RDMARemoteMemoryPool> remote_;
  std::unique_ptr<dlslime::RDMAChannel> channel_;
  int32_t handle_ = -1;
  int32_t remote_handle_ = -1;
  QueuePairAddress address_;
  std::vector<std::unique_ptr<ReadOperation>> reads_;  // by number
};

Status Device::NewEndpoint(size_t bytes, uint32_t num_reads,
                           std::unique_ptr<DlslimeEndpoint>* out) {
  auto endpoint = std::make_unique<Endpoint>(shared_from_this(), num_reads);
  try {
    if (Status s = endpoint->Init(bytes); !s.ok()) return s;
  } catch (const std::exception& error) {
    return Failed(error.what());
  }
  *out = std::move(endpoint);
  return Status::Ok();
}

// dlslime takes for granted that a device has these, and dies where it has not.
Status CheckLimits(const std::string& name) {
  int count = 0;
  ibv_device** list = ibv_get_device_list(&count);
  if (list == nullptr) return Failed("no RDMA devices");
  Status status = Failed("device '" + name + "' does not exist");
  for (int i = 0; i < count; ++i) {
    if (name != ibv_get_device_name(list[i])) continue;
    ibv_context* context = ibv_open_device(list[i]);
    ibv_device_attr limits{};
    const bool known = context != nullptr && ibv_query_device(context, &limits) == 0;
    if (context != nullptr) ibv_close_device(context);
    const bool enough = known && limits.max_qp_wr >= dlslime::SLIME_MAX_SEND_WR &&
                        limits.max_qp_wr >= dlslime::SLIME_MAX_RECV_WR &&
                        limits.max_qp_rd_atom >= dlslime::SLIME_MAX_DEST_RD_ATOMIC;
    status = enough ? Status::Ok() : Failed("device '" + name + "' has too short queues");
  }
  ibv_free_device_list(list);
  return status;
}

Status OpenDevice(const std::string& name, std::shared_ptr<DlslimeDevice>* out) {
  static std::mutex mutex;
  static std::map<std::string, std::weak_ptr<Device>> open;
  const std::lock_guard lock(mutex);
  if (std::shared_ptr<Device> device = open[name].lock()) {
    *out = std::move(device);
    return Status::Ok();
  }
  if (Status s = CheckLimits(name); !s.ok()) return s;
  auto device = std::make_shared<Device>();
  if (Status s = device->Open(name); !s.ok()) return s;
  open[name] = device;
  *out = std::move(device);
  return Status::Ok();
}

std::string HashOfFile(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  Sha256 hash;
  hash.Update(content);
  std::string text;
  for (const uint8_t byte : hash.Finish()) {
    constexpr char kDigits[] = "0123456789abcdef";
    text += {kDigits[byte >> 4], kDigits[byte & 15]};
  }
  return text;
}

Status CheckLibrary() {
  Dl_info where{};
  // Any function that lives in dlslime's library.
  const auto function = &dlslime::rdmaLinkTypeName;
  if (dladdr(reinterpret_cast<const void*>(function), &where) == 0) return Failed("not loaded");
  if (HashOfFile(where.dli_fname) == DLCORE_DLSLIME_SHA256) return Status::Ok();
  return Failed(std::string(where.dli_fname) + " is not of dlslime " DLCORE_DLSLIME_RELEASE
                                               ", which dlcore was built with");
}

}  // namespace
}  // namespace dlcore

extern "C" [[gnu::visibility("default")]] const dlcore::DlslimePlugin dlcore_dlslime_plugin = {
    dlcore::kDlslimePluginVersion, &dlcore::CheckLibrary, &dlcore::OpenDevice};

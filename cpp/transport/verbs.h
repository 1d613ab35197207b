#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <infiniband/verbs.h>

#include "dlcore/status.h"
#include "transport/queue_pair_address.h"

// libibverbs, loaded at run time: machines without RDMA need nothing installed.
// Built only where its header is found.
namespace dlcore {

struct VerbsLibrary {
  ibv_device** (*GetDeviceList)(int* count);
  void (*FreeDeviceList)(ibv_device** list);
  const char* (*GetDeviceName)(ibv_device* device);
  ibv_context* (*OpenDevice)(ibv_device* device);
  int (*CloseDevice)(ibv_context* context);
  int (*QueryPort)(ibv_context* context, uint8_t port, void* attributes);
  int (*QueryGid)(ibv_context* context, uint8_t port, int index, ibv_gid* gid);
  ibv_pd* (*AllocPd)(ibv_context* context);
  int (*DeallocPd)(ibv_pd* pd);
  ibv_mr* (*RegMr)(ibv_pd* pd, void* address, size_t bytes, int access);
  int (*DeregMr)(ibv_mr* mr);
  ibv_cq* (*CreateCq)(ibv_context* context, int entries, void* user, ibv_comp_channel* channel,
                      int vector);
  int (*DestroyCq)(ibv_cq* cq);
  ibv_qp* (*CreateQp)(ibv_pd* pd, ibv_qp_init_attr* attributes);
  int (*ModifyQp)(ibv_qp* qp, ibv_qp_attr* attributes, int mask);
  int (*DestroyQp)(ibv_qp* qp);
  const char* (*WcStatusText)(ibv_wc_status status);
};

// Unavailable where libibverbs.so.1 is missing. Thread safety: any thread.
Status LoadVerbs(const VerbsLibrary** out);

// A reliable connected queue pair with memory of its own, on one device.
// Destroying it ends every access to that memory, whichever side began it.
// Thread safety: one thread.
class VerbsEndpoint {
 public:
  // Opens `device` (empty: the first with an active port) and makes a queue pair
  // and `bytes` of memory the device may access as `access` (IBV_ACCESS_*) says.
  static Status Create(const std::string& device, size_t bytes, int access,
                       std::unique_ptr<VerbsEndpoint>* out);
  ~VerbsEndpoint();
  VerbsEndpoint(const VerbsEndpoint&) = delete;
  VerbsEndpoint& operator=(const VerbsEndpoint&) = delete;

  [[nodiscard]] QueuePairAddress address() const;
  Status Connect(const QueuePairAddress& peer);
  // Writes the memory's first `length` bytes to the peer, then reads one byte
  // back: when that answer is here, the peer's CPU sees what was written.
  Status PostWrite(uint64_t length, uint64_t remote_address, uint32_t rkey);
  // Whether what was posted has ended; Unavailable when it failed.
  Status PollWrite(bool* done);

  [[nodiscard]] std::byte* memory() const { return memory_.get(); }
  [[nodiscard]] uint32_t rkey() const { return mr_->rkey; }
  [[nodiscard]] std::string device() const { return verbs_->GetDeviceName(context_->device); }

 private:
  explicit VerbsEndpoint(const VerbsLibrary* verbs) : verbs_(verbs) {}
  Status OpenDevice(const std::string& device);
  Status TryDevice(ibv_device* device);
  void FindGid();
  Status MakeQueuePair(size_t bytes, int access);
  Status ToReadyToReceive(const QueuePairAddress& peer);
  Status ToReadyToSend();

  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };

  const VerbsLibrary* verbs_;
  ibv_context* context_ = nullptr;
  ibv_port_attr port_{};
  int gid_index_ = 0;
  ibv_gid gid_{};
  ibv_pd* pd_ = nullptr;
  std::unique_ptr<std::byte, Free> memory_;
  ibv_mr* mr_ = nullptr;
  ibv_cq* cq_ = nullptr;
  ibv_qp* qp_ = nullptr;
  uint32_t psn_ = 0;
};

// OK when some device has an active port.
Status CheckVerbsDevice(const std::string& device);
// The name of `device`, or of the first with an active port where it is empty.
Status FindVerbsDevice(const std::string& device, std::string* name);

}  // namespace dlcore

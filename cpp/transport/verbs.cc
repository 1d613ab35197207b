#include "transport/verbs.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include <dlfcn.h>
#include <unistd.h>

#include "transport/wire.h"

namespace dlcore {
namespace {

constexpr uint8_t kPort = 1;
constexpr uint8_t kTimeout = 14;  // 4.096 us * 2^14 = 67 ms per try
constexpr uint8_t kRetries = 7;
constexpr uint8_t kHopLimit = 64;

Status SystemError(const std::string& what) {
  return Status::Unavailable("rdma: " + what + ": " + std::strerror(errno));
}

template <class Function>
bool Find(void* library, const char* name, Function* out) {
  *out = reinterpret_cast<Function>(dlsym(library, name));
  return *out != nullptr;
}

bool FindAll(void* lib, VerbsLibrary* v) {
  return Find(lib, "ibv_get_device_list", &v->GetDeviceList) &&
         Find(lib, "ibv_free_device_list", &v->FreeDeviceList) &&
         Find(lib, "ibv_get_device_name", &v->GetDeviceName) &&
         Find(lib, "ibv_open_device", &v->OpenDevice) &&
         Find(lib, "ibv_close_device", &v->CloseDevice) &&
         Find(lib, "ibv_query_port", &v->QueryPort) && Find(lib, "ibv_query_gid", &v->QueryGid) &&
         Find(lib, "ibv_alloc_pd", &v->AllocPd) && Find(lib, "ibv_dealloc_pd", &v->DeallocPd) &&
         Find(lib, "ibv_reg_mr", &v->RegMr) && Find(lib, "ibv_dereg_mr", &v->DeregMr) &&
         Find(lib, "ibv_create_cq", &v->CreateCq) && Find(lib, "ibv_destroy_cq", &v->DestroyCq) &&
         Find(lib, "ibv_create_qp", &v->CreateQp) && Find(lib, "ibv_modify_qp", &v->ModifyQp) &&
         Find(lib, "ibv_destroy_qp", &v->DestroyQp) &&
         Find(lib, "ibv_wc_status_str", &v->WcStatusText);
}

bool IsIpv4Mapped(const ibv_gid& gid) {
  constexpr uint8_t kPrefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  return std::equal(std::begin(kPrefix), std::end(kPrefix), gid.raw);
}

bool IsRoceV2(const std::string& device, int index) {
  std::ifstream file("/sys/class/infiniband/" + device + "/ports/1/gid_attrs/types/" +
                     std::to_string(index));
  std::string text;
  std::getline(file, text);
  return text == "RoCE v2";
}

}  // namespace

Status LoadVerbs(const VerbsLibrary** out) {
  static const VerbsLibrary* const loaded = []() -> const VerbsLibrary* {
    static VerbsLibrary library;
    void* handle = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
    return handle != nullptr && FindAll(handle, &library) ? &library : nullptr;
  }();
  if (loaded == nullptr) {
    return Status::Unavailable("rdma: libibverbs.so.1 is not installed (package libibverbs1)");
  }
  *out = loaded;
  return Status::Ok();
}

Status CheckVerbsDevice(const std::string& device) {
  std::string name;
  return FindVerbsDevice(device, &name);
}

Status FindVerbsDevice(const std::string& device, std::string* name) {
  std::unique_ptr<VerbsEndpoint> endpoint;
  if (Status s = VerbsEndpoint::Create(device, 4096, 0, &endpoint); !s.ok()) return s;
  *name = endpoint->device();
  return Status::Ok();
}

Status VerbsEndpoint::Create(const std::string& device, size_t bytes, int access,
                             std::unique_ptr<VerbsEndpoint>* out) {
  const VerbsLibrary* verbs = nullptr;
  if (Status s = LoadVerbs(&verbs); !s.ok()) return s;
  std::unique_ptr<VerbsEndpoint> endpoint(new VerbsEndpoint(verbs));
  if (Status s = endpoint->OpenDevice(device); !s.ok()) return s;
  if (Status s = endpoint->MakeQueuePair(bytes, access); !s.ok()) return s;
  *out = std::move(endpoint);
  return Status::Ok();
}

VerbsEndpoint::~VerbsEndpoint() {
  if (qp_ != nullptr) verbs_->DestroyQp(qp_);
  if (cq_ != nullptr) verbs_->DestroyCq(cq_);
  if (mr_ != nullptr) verbs_->DeregMr(mr_);
  if (pd_ != nullptr) verbs_->DeallocPd(pd_);
  if (context_ != nullptr) verbs_->CloseDevice(context_);
}

Status VerbsEndpoint::OpenDevice(const std::string& device) {
  int count = 0;
  ibv_device** list = verbs_->GetDeviceList(&count);
  if (list == nullptr) return SystemError("no devices");
  Status status = Status::Unavailable(
      device.empty() ? "rdma: no device" : "rdma: device '" + device + "' does not exist");
  for (int i = 0; i < count && context_ == nullptr; ++i) {
    if (device.empty() || device == verbs_->GetDeviceName(list[i])) status = TryDevice(list[i]);
  }
  verbs_->FreeDeviceList(list);
  return status;
}

Status VerbsEndpoint::TryDevice(ibv_device* device) {
  const std::string name = verbs_->GetDeviceName(device);
  context_ = verbs_->OpenDevice(device);
  if (context_ == nullptr) return SystemError("cannot open " + name);
  if (verbs_->QueryPort(context_, kPort, &port_) == 0 && port_.state == IBV_PORT_ACTIVE) {
    FindGid();
    return Status::Ok();
  }
  verbs_->CloseDevice(context_);
  context_ = nullptr;
  return Status::Unavailable("rdma: port 1 of " + name + " is not active");
}

void VerbsEndpoint::FindGid() {
  const std::string name = verbs_->GetDeviceName(context_->device);
  int best = -1;
  for (int i = 0; i < port_.gid_tbl_len && best < 2; ++i) {
    ibv_gid gid{};
    if (verbs_->QueryGid(context_, kPort, i, &gid) != 0) continue;
    // Routable RoCE v2 first, then any IPv4 address, then whatever is first.
    const int score = IsIpv4Mapped(gid) ? (IsRoceV2(name, i) ? 2 : 1) : 0;
    if (score <= best) continue;
    best = score;
    gid_index_ = i;
    gid_ = gid;
  }
}

Status VerbsEndpoint::MakeQueuePair(size_t bytes, int access) {
  pd_ = verbs_->AllocPd(context_);
  if (pd_ == nullptr) return SystemError("protection domain");
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(page, bytes)));
  if (memory_ == nullptr) return Status::Unavailable("rdma: no memory for the window");
  std::memset(memory_.get(), 0, bytes);
  mr_ = verbs_->RegMr(pd_, memory_.get(), bytes, IBV_ACCESS_LOCAL_WRITE | access);
  if (mr_ == nullptr) return SystemError("memory registration (is RLIMIT_MEMLOCK too low?)");
  cq_ = verbs_->CreateCq(context_, 8, nullptr, nullptr, 0);
  if (cq_ == nullptr) return SystemError("completion queue");
  ibv_qp_init_attr init{};
  init.send_cq = cq_;
  init.recv_cq = cq_;
  init.cap = {.max_send_wr = 4,
              .max_recv_wr = 1,
              .max_send_sge = 1,
              .max_recv_sge = 1,
              .max_inline_data = 0};
  init.qp_type = IBV_QPT_RC;
  qp_ = verbs_->CreateQp(pd_, &init);
  if (qp_ == nullptr) return SystemError("queue pair");
  psn_ = RandomNonce()[0] | uint32_t{RandomNonce()[0]} << 8;
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_INIT;
  attr.port_num = kPort;
  attr.qp_access_flags = static_cast<unsigned>(access);
  constexpr int kMask = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
  return verbs_->ModifyQp(qp_, &attr, kMask) == 0 ? Status::Ok() : SystemError("queue pair INIT");
}

QueuePairAddress VerbsEndpoint::address() const {
  QueuePairAddress address{
      qp_->qp_num, psn_, port_.lid, static_cast<uint8_t>(port_.active_mtu), {}};
  std::copy(std::begin(gid_.raw), std::end(gid_.raw), address.gid.begin());
  return address;
}

Status VerbsEndpoint::Connect(const QueuePairAddress& peer) {
  if (Status s = ToReadyToReceive(peer); !s.ok()) return s;
  return ToReadyToSend();
}

Status VerbsEndpoint::ToReadyToReceive(const QueuePairAddress& peer) {
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_RTR;
  attr.path_mtu = static_cast<ibv_mtu>(
      std::clamp<int>(std::min<int>(peer.mtu, port_.active_mtu), IBV_MTU_256, IBV_MTU_4096));
  attr.dest_qp_num = peer.qp_num;
  attr.rq_psn = peer.psn & 0xffffff;
  attr.max_dest_rd_atomic = 1;
  attr.min_rnr_timer = 12;
  attr.ah_attr.dlid = peer.lid;
  attr.ah_attr.port_num = kPort;
  attr.ah_attr.is_global = port_.link_layer == IBV_LINK_LAYER_ETHERNET ? 1 : 0;
  std::copy(peer.gid.begin(), peer.gid.end(), std::begin(attr.ah_attr.grh.dgid.raw));
  attr.ah_attr.grh.sgid_index = static_cast<uint8_t>(gid_index_);
  attr.ah_attr.grh.hop_limit = kHopLimit;
  constexpr int kMask = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
                        IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
  return verbs_->ModifyQp(qp_, &attr, kMask) == 0 ? Status::Ok() : SystemError("queue pair RTR");
}

Status VerbsEndpoint::ToReadyToSend() {
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_RTS;
  attr.timeout = kTimeout;
  attr.retry_cnt = kRetries;
  attr.rnr_retry = kRetries;
  attr.sq_psn = psn_ & 0xffffff;
  attr.max_rd_atomic = 1;
  constexpr int kMask = IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                        IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC;
  return verbs_->ModifyQp(qp_, &attr, kMask) == 0 ? Status::Ok() : SystemError("queue pair RTS");
}

Status VerbsEndpoint::PostWrite(uint64_t length, uint64_t remote_address, uint32_t rkey) {
  const uint64_t local = reinterpret_cast<uint64_t>(memory_.get());
  ibv_sge data{local, static_cast<uint32_t>(length), mr_->lkey};
  ibv_sge back{local, 1, mr_->lkey};
  ibv_send_wr read{};
  read.opcode = IBV_WR_RDMA_READ;
  read.send_flags = IBV_SEND_SIGNALED;
  read.sg_list = &back;
  read.num_sge = 1;
  ibv_send_wr write{};
  write.opcode = IBV_WR_RDMA_WRITE;
  write.sg_list = &data;
  write.num_sge = 1;
  write.next = &read;
  for (ibv_send_wr* wr : {&write, &read}) {
    wr->wr.rdma.remote_addr = remote_address;
    wr->wr.rdma.rkey = rkey;
  }
  ibv_send_wr* bad = nullptr;
  return ibv_post_send(qp_, &write, &bad) == 0 ? Status::Ok() : SystemError("post");
}

Status VerbsEndpoint::PollWrite(bool* done) {
  ibv_wc completion{};
  const int count = ibv_poll_cq(cq_, 1, &completion);
  if (count < 0) return Status::Unavailable("rdma: completion queue failed");
  *done = count == 1;
  if (count == 0 || completion.status == IBV_WC_SUCCESS) return Status::Ok();
  return Status::Unavailable(std::string("rdma: ") + verbs_->WcStatusText(completion.status));
}

}  // namespace dlcore

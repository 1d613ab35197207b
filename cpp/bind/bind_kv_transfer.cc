#include <chrono>
#include <tuple>
#include <utility>

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind/bind.h"
#include "dlcore/kv_transfer.h"
#include "dlcore/request.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dlcore {
namespace {

using SourceTuple = std::tuple<std::string, uint64_t, uint64_t>;

void ConstructSource(KvSource* self, const std::vector<SourceTuple>& leases, int32_t num_tokens,
                     bool recompute_on_failure) {
  if (leases.empty()) throw nb::value_error("leases: a source needs one per rank of its owner");
  if (num_tokens < 1) throw nb::value_error("num_tokens must be at least 1");
  KvSource source;
  for (const auto& [endpoint, id, epoch] : leases)
    source.sources.push_back({endpoint, {id, epoch}});
  source.num_tokens = num_tokens;
  source.recompute_on_failure = recompute_on_failure;
  new (self) KvSource(std::move(source));
}

std::chrono::milliseconds Milliseconds(const char* field, double seconds) {
  if (!(seconds > 0 && seconds < 1e6)) {
    throw nb::value_error((std::string(field) + " must be in (0, 1000000) seconds").c_str());
  }
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000) + 1);
}

void Construct(KvTransferOptions* self, const std::vector<uint64_t>& layer_addresses,
               int32_t block_size, int32_t num_blocks, int32_t num_planes, int32_t num_kv_heads,
               int32_t bytes_per_head, nb::bytes key, bool serves,
               std::vector<std::string> transports, std::string host, uint16_t port,
               std::string socket_dir, std::string rdma_device, double lease_ttl_s,
               double pull_timeout_s, int32_t cuda_device) {
  KvTransferOptions options;
  options.layout.groups = {{block_size, num_blocks, num_planes, num_kv_heads, bytes_per_head}};
  for (const uint64_t address : layer_addresses) options.layout.layers.push_back({0, address});
  options.key.assign(key.c_str(), key.size());
  options.serves = serves;
  options.transports = std::move(transports);
  options.host = std::move(host);
  options.port = port;
  options.socket_dir = std::move(socket_dir);
  options.rdma_device = std::move(rdma_device);
  options.lease_ttl = Milliseconds("lease_ttl_s", lease_ttl_s);
  options.pull_timeout = Milliseconds("pull_timeout_s", pull_timeout_s);
  options.cuda_device = cuda_device;
  ThrowIfError(options.Validate());
  new (self) KvTransferOptions(std::move(options));
}

}  // namespace

void BindKvTransfer(nb::module_& m) {
  const KvTransferOptions d;
  nb::class_<KvSource>(
      m, "KvSource",
      "KV of a prompt under another engine's leases. leases: (endpoint, lease id, epoch), one\n"
      "per rank of that engine; num_tokens: covered by them, from the first one on. When pulling\n"
      "fails the prompt is computed here, or (recompute_on_failure=False) the request ends with\n"
      "the error 'migration_failed: why'.")
      .def("__init__", &ConstructSource, nb::kw_only(), "leases"_a, "num_tokens"_a,
           "recompute_on_failure"_a = true);
  nb::class_<KvTransferOptions>(
      m, "KvTransferOptions",
      "How an engine's KV pool looks and how others reach it (cpp/include/dlcore/kv_transfer.h).\n"
      "layer_addresses: of block 0 of each layer, [num_planes, num_kv_heads, block_size,\n"
      "bytes_per_head] bytes a block. cuda_device: the GPU they lie on, -1 = host memory.\n"
      "serves: put KV under leases and listen. transports: names, empty = all that work here.\n"
      "Raises ValueError naming the field.")
      .def("__init__", &Construct, nb::kw_only(), "layer_addresses"_a, "block_size"_a,
           "num_blocks"_a, "num_planes"_a, "num_kv_heads"_a, "bytes_per_head"_a, "key"_a,
           "serves"_a, "transports"_a = nb::make_tuple(), "host"_a = d.host, "port"_a = d.port,
           "socket_dir"_a = d.socket_dir, "rdma_device"_a = d.rdma_device,
           "lease_ttl_s"_a = static_cast<double>(d.lease_ttl.count()) / 1000,
           "pull_timeout_s"_a = static_cast<double>(d.pull_timeout.count()) / 1000,
           "cuda_device"_a = d.cuda_device);
}

}  // namespace dlcore

#include "transport/registry.h"

#include <algorithm>
#include <array>
#include <fstream>

namespace dlcore {
namespace {

// Whether `endpoint` can be used here; the reason when not.
Status Suits(const TransportFactory& factory, std::string_view endpoint, bool pool_on_device) {
  if (factory.device_memory && !pool_on_device) {
    return Status::Unavailable("needs the pool in GPU memory");
  }
  if (factory.same_host && !EndpointAddress(endpoint).starts_with(HostId())) {
    return Status::Unavailable("is on another host");
  }
  return factory.available();
}

}  // namespace

std::span<const TransportFactory* const> Transports() {
  static const std::array kTransports = {
      &CudaIpcTransport(), &ShmTransport(),
#ifdef DLCORE_RDMA
      &RdmaTransport(),    &DlslimeTransport(),
#endif
      &TcpTransport(),
  };
  return kTransports;
}

Status FindTransport(std::string_view name, const TransportFactory** out) {
  std::string names;
  for (const TransportFactory* factory : Transports()) {
    if (factory->name == name) {
      *out = factory;
      return Status::Ok();
    }
    names.append(names.empty() ? "" : ", ").append(factory->name);
  }
#ifndef DLCORE_RDMA
  if (name == "rdma" || name == "dlslime") {
    return Status::InvalidArgument("transport '" + std::string(name) +
                                   "' was left out of this build: install libibverbs-dev and build "
                                   "dlcore again, or use one of " +
                                   names);
  }
#endif
  return Status::InvalidArgument("transport '" + std::string(name) + "' does not exist; one of " +
                                 names);
}

Status NewTransportServer(std::string_view name, const TransportServerOptions& options,
                          std::unique_ptr<TransportServer>* out) {
  const TransportFactory* factory = nullptr;
  if (Status s = FindTransport(name, &factory); !s.ok()) return s;
  if (Status s = factory->available(); !s.ok()) return s;
  return factory->new_server(options, out);
}

Status NewTransportClient(const std::string& endpoint, const TransportClientOptions& options,
                          std::unique_ptr<TransportClient>* out) {
  const TransportFactory* factory = nullptr;
  if (Status s = FindTransport(TransportName(endpoint), &factory); !s.ok()) return s;
  if (Status s = factory->available(); !s.ok()) return s;
  if (options.memory == nullptr) return Status::InvalidArgument("memory must be set");
  return factory->new_client(endpoint, options, out);
}

Status ChooseEndpoint(std::span<const std::string> offered, std::string_view forced,
                      bool pool_on_device, std::string* out) {
  std::string reasons;
  for (const TransportFactory* factory : Transports()) {
    if (!forced.empty() && factory->name != forced) continue;
    const auto endpoint = std::find_if(offered.begin(), offered.end(), [&](const auto& e) {
      return TransportName(e) == factory->name;
    });
    const Status s = endpoint == offered.end() ? Status::Unavailable("is not offered")
                                               : Suits(*factory, *endpoint, pool_on_device);
    if (s.ok()) {
      *out = *endpoint;
      return s;
    }
    reasons.append(" ").append(factory->name).append(": ").append(s.message()).append(";");
  }
  if (reasons.empty()) reasons = " no transport is named '" + std::string(forced) + "'";
  return Status::Unavailable("no usable transport:" + reasons);
}

std::string HostId() {
  static const std::string id = [] {
    std::string text;
    std::ifstream("/proc/sys/kernel/random/boot_id") >> text;
    return text;
  }();
  return id;
}

std::string_view TransportName(std::string_view endpoint) {
  return endpoint.substr(0, std::min(endpoint.find("://"), endpoint.size()));
}

std::string_view EndpointAddress(std::string_view endpoint) {
  const size_t at = endpoint.find("://");
  return at == std::string_view::npos ? std::string_view() : endpoint.substr(at + 3);
}

}  // namespace dlcore

#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "dlcore/transport.h"

// The transports this build has, and which of them two nodes should use.
namespace dlcore {

// What one transport file provides. An endpoint is "NAME://REST"; for
// transports within a host REST begins with the host's id.
struct TransportFactory {
  std::string_view name;
  bool same_host = false;      // reaches only processes of this host
  bool device_memory = false;  // both pools must be GPU memory
  bool on_request = false;     // offered only by a node that was told to use it
  // OK, or why it cannot work on this machine.
  Status (*available)();
  Status (*new_server)(const TransportServerOptions& options,
                       std::unique_ptr<TransportServer>* out);
  Status (*new_client)(const std::string& endpoint, const TransportClientOptions& options,
                       std::unique_ptr<TransportClient>* out);
};

// Fastest first. One line here and one file make a transport.
[[nodiscard]] std::span<const TransportFactory* const> Transports();
// InvalidArgument lists the names there are.
Status FindTransport(std::string_view name, const TransportFactory** out);

Status NewTransportServer(std::string_view name, const TransportServerOptions& options,
                          std::unique_ptr<TransportServer>* out);
Status NewTransportClient(const std::string& endpoint, const TransportClientOptions& options,
                          std::unique_ptr<TransportClient>* out);

// The endpoint to use among those a node offers: the fastest whose transport
// works here, reaches that node, and suits where the pool lies. `forced` names
// the only transport to consider, or is empty. Unavailable says why none fits.
Status ChooseEndpoint(std::span<const std::string> offered, std::string_view forced,
                      bool pool_on_device, std::string* out);

// Identifies this host until it reboots; equal for all its processes.
[[nodiscard]] std::string HostId();
// The part of an endpoint before "://".
[[nodiscard]] std::string_view TransportName(std::string_view endpoint);
// The part after "://".
[[nodiscard]] std::string_view EndpointAddress(std::string_view endpoint);

const TransportFactory& CudaIpcTransport();
const TransportFactory& ShmTransport();
const TransportFactory& TcpTransport();
#ifdef DLCORE_RDMA
const TransportFactory& RdmaTransport();
const TransportFactory& DlslimeTransport();
#endif

}  // namespace dlcore

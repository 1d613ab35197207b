#include "transport/any_host.h"

#include <utility>

#include "transport/registry.h"

namespace dlcore {

Status NewAnyHostServer(std::string_view name, OwnerPlaneFactory new_plane,
                        const TransportServerOptions& options,
                        std::unique_ptr<TransportServer>* out) {
  if (Status s = ValidateServerOptions(options); !s.ok()) return s;
  ServerSpec spec;
  uint16_t port = 0;
  if (Status s = ListenTcp(options.host, options.port, &spec.listener, &port); !s.ok()) return s;
  spec.transport = name;
  spec.endpoint = spec.transport + "://" + FormatHostPort(options.host, port);
  spec.new_plane = std::move(new_plane);
  *out = std::make_unique<LeaseServer>(std::move(spec), options);
  return Status::Ok();
}

Status NewAnyHostClient(std::string_view name, const std::string& endpoint,
                        ReaderPlaneFactory new_plane, const TransportClientOptions& options,
                        std::unique_ptr<TransportClient>* out) {
  ClientSpec spec;
  spec.transport = name;
  std::string host;
  uint16_t port = 0;
  if (!ParseHostPort(std::string(EndpointAddress(endpoint)), &host, &port)) {
    return Status::InvalidArgument("endpoint '" + endpoint + "' must be " + spec.transport +
                                   "://HOST:PORT");
  }
  spec.connect = [host, port](UniqueFd* fd) { return StartConnectTcp(host, port, fd); };
  spec.new_plane = std::move(new_plane);
  *out = std::make_unique<LeaseClient>(std::move(spec), options);
  return Status::Ok();
}

}  // namespace dlcore

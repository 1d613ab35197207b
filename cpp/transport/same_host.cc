#include "transport/same_host.h"

#include <utility>

#include "transport/registry.h"

namespace dlcore {

Status NewSameHostServer(std::string_view name, OwnerPlaneFactory new_plane,
                         const TransportServerOptions& options,
                         std::unique_ptr<TransportServer>* out) {
  if (Status s = ValidateServerOptions(options); !s.ok()) return s;
  ServerSpec spec;
  if (Status s = ListenUnix(options.socket_dir, &spec.listener, &spec.unlink_path); !s.ok()) {
    return s;
  }
  spec.transport = name;
  spec.endpoint = spec.transport + "://" + HostId() + spec.unlink_path;
  spec.new_plane = std::move(new_plane);
  *out = std::make_unique<LeaseServer>(std::move(spec), options);
  return Status::Ok();
}

Status NewSameHostClient(std::string_view name, const std::string& endpoint,
                         ReaderPlaneFactory new_plane, const TransportClientOptions& options,
                         std::unique_ptr<TransportClient>* out) {
  ClientSpec spec;
  spec.transport = name;
  const std::string_view address = EndpointAddress(endpoint);
  const size_t slash = address.find('/');
  if (slash == std::string_view::npos) {
    return Status::InvalidArgument("endpoint '" + endpoint + "' must be " + spec.transport +
                                   "://HOST_ID/PATH");
  }
  spec.connect = [path = std::string(address.substr(slash))](UniqueFd* fd) {
    return StartConnectUnix(path, fd);
  };
  spec.new_plane = std::move(new_plane);
  *out = std::make_unique<LeaseClient>(std::move(spec), options);
  return Status::Ok();
}

}  // namespace dlcore

#pragma once

#include <string>
#include <string_view>

#include "transport/lease_client.h"
#include "transport/lease_server.h"

namespace dlcore {

// What transports within a host share: control goes over a Unix socket, and an
// endpoint is "NAME://HOST_ID/PATH of the socket".
Status NewSameHostServer(std::string_view name, OwnerPlaneFactory new_plane,
                         const TransportServerOptions& options,
                         std::unique_ptr<TransportServer>* out);
Status NewSameHostClient(std::string_view name, const std::string& endpoint,
                         ReaderPlaneFactory new_plane, const TransportClientOptions& options,
                         std::unique_ptr<TransportClient>* out);

}  // namespace dlcore

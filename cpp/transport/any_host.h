#pragma once

#include <string>
#include <string_view>

#include "transport/lease_client.h"
#include "transport/lease_server.h"

namespace dlcore {

// What transports between any two hosts share: control goes over TCP, and an
// endpoint is "NAME://HOST:PORT".
Status NewAnyHostServer(std::string_view name, OwnerPlaneFactory new_plane,
                        const TransportServerOptions& options,
                        std::unique_ptr<TransportServer>* out);
Status NewAnyHostClient(std::string_view name, const std::string& endpoint,
                        ReaderPlaneFactory new_plane, const TransportClientOptions& options,
                        std::unique_ptr<TransportClient>* out);

}  // namespace dlcore

#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "dlcore/status.h"
#include "dlcore/transport.h"

namespace dlcore {

// What lets an engine take part in Prefill-Decode disaggregation: its pool as
// others see it, and how the two sides reach each other. docs/disaggregation.md
// has the roles.
struct KvTransferOptions {
  KvLayout layout;                      // of the engine's own pool
  int32_t cuda_device = -1;             // the GPU the pool lies on, -1 = host memory
  bool serves = false;                  // a prefill node: listens, and puts KV under leases
  std::vector<std::string> transports;  // names, fastest first; empty = all that work here
  std::string key;                      // the deployment's secret, at least 16 bytes
  std::string host = "127.0.0.1";
  uint16_t port = 0;  // of transports that listen on TCP; 0 = any free one
  std::string socket_dir = "/tmp";
  std::string rdma_device;  // empty = the first with an active port
  std::chrono::milliseconds lease_ttl{30000};
  std::chrono::milliseconds pull_timeout{
      20000};  // a migration to which nothing comes for so long has failed

  // OK, or InvalidArgument naming the field and the fix.
  [[nodiscard]] Status Validate() const;
};

}  // namespace dlcore

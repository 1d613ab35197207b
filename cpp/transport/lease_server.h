#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "base/event_fd.h"
#include "transport/data_plane.h"
#include "transport/owner_connection.h"

namespace dlcore {

// Checks what every transport needs. InvalidArgument names the field.
Status ValidateServerOptions(const TransportServerOptions& options);

// Where a server listens, and how payload travels.
struct ServerSpec {
  std::string transport;  // "tcp"; also what the handshake is bound to
  std::string endpoint;   // "tcp://127.0.0.1:40123"
  UniqueFd listener;
  std::string unlink_path;  // socket file removed at the end, or empty
  OwnerPlaneFactory new_plane;
};

// Serves leases to any number of readers from one thread.
class LeaseServer final : public TransportServer {
 public:
  LeaseServer(ServerSpec spec, TransportServerOptions options);
  ~LeaseServer() override;

  [[nodiscard]] std::string endpoint() const override { return spec_.endpoint; }

 private:
  void Run();
  void Accept();
  void Serve(int fd, bool readable);
  void AdvanceAll();
  struct Served {
    std::unique_ptr<OwnerConnection> connection;
    uint32_t interest = 0;  // epoll events asked for
  };
  void UpdateInterest(Served* served);
  [[nodiscard]] int WaitMilliseconds() const;

  ServerSpec spec_;
  const TransportServerOptions options_;
  UniqueFd epoll_;
  EventFd wake_;
  int32_t listener_token_ = 0;
  std::map<int, Served> connections_;  // by fd
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace dlcore

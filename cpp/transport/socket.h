#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "dlcore/status.h"
#include "dlcore/transport.h"

namespace dlcore {

// Owns a file descriptor.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  ~UniqueFd() { Reset(); }
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      Reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  void Reset();
  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] bool valid() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// Listening sockets, non-blocking. `port` and `path` report what was bound.
Status ListenTcp(const std::string& host, uint16_t port, UniqueFd* out, uint16_t* bound_port);
// A socket file only its owner may open, in `dir`, under an unguessable name.
Status ListenUnix(const std::string& dir, UniqueFd* out, std::string* path);

// Begins to connect a non-blocking socket; it is writable when that ended, and
// ConnectResult says how.
Status StartConnectTcp(const std::string& host, uint16_t port, UniqueFd* out);
// ResourceExhausted where as many as the listener lets wait do: try again.
Status StartConnectUnix(const std::string& path, UniqueFd* out);
Status ConnectResult(int fd);

// For TCP: small messages leave at once, and the kernel too notices a dead host.
// No effect on other sockets.
void TuneSocket(int fd);

// Waits until `fd` (may be -1) has one of `events` (poll's bits), `wake_fd` is
// readable or the deadline has passed. True when `fd` is ready.
bool WaitForSocket(int fd, short events, int wake_fd, TimePoint deadline);

// Splits "host:port" and "[v6]:port".
bool ParseHostPort(const std::string& text, std::string* host, uint16_t* port);

[[nodiscard]] std::string FormatHostPort(const std::string& host, uint16_t port);

// Milliseconds from now to `deadline`, in [0, limit].
[[nodiscard]] int MillisecondsUntil(TimePoint deadline, int limit);

}  // namespace dlcore

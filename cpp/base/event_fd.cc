#include "base/event_fd.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdint>

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

namespace dlcore {
namespace {

constexpr double kLongestPollMs = 1e9;

int RemainingMs(std::chrono::steady_clock::time_point deadline) {
  const std::chrono::duration<double, std::milli> left =
      deadline - std::chrono::steady_clock::now();
  return static_cast<int>(std::clamp(std::ceil(left.count()), 0.0, kLongestPollMs));
}

}  // namespace

EventFd::EventFd() : fd_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

EventFd::~EventFd() {
  if (valid()) ::close(fd_);
}

void EventFd::Signal() {
  const uint64_t one = 1;
  // EAGAIN means the counter is full, so the descriptor is readable already.
  [[maybe_unused]] const ssize_t written = ::write(fd_, &one, sizeof(one));
}

void EventFd::Drain() {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = ::read(fd_, &count, sizeof(count));
}

bool EventFd::Wait(double timeout_s) const {
  const double bounded_ms = std::min(timeout_s * 1e3, kLongestPollMs);
  const auto deadline =
      std::chrono::steady_clock::now() +
      std::chrono::microseconds(static_cast<int64_t>(std::max(bounded_ms, 0.0) * 1e3));
  pollfd watched{fd_, POLLIN, 0};
  while (true) {
    const int ready = ::poll(&watched, 1, timeout_s < 0 ? -1 : RemainingMs(deadline));
    if (ready > 0) return true;
    if (ready == 0) return false;
    if (errno != EINTR) return false;
  }
}

}  // namespace dlcore

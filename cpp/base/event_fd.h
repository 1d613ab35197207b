#pragma once

namespace dlcore {

// A level: readable from Signal until Drain. Event loops can watch fd().
// Thread safety: any thread.
class EventFd {
 public:
  // valid() is false afterwards when the process is out of file descriptors.
  EventFd();
  ~EventFd();
  EventFd(const EventFd&) = delete;
  EventFd& operator=(const EventFd&) = delete;

  void Signal();
  void Drain();
  // Waits until readable; false on timeout. Negative waits without limit.
  [[nodiscard]] bool Wait(double timeout_s) const;
  [[nodiscard]] bool valid() const { return fd_ >= 0; }
  [[nodiscard]] int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

}  // namespace dlcore

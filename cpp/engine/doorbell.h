#pragma once

#include <atomic>

#include "base/event_fd.h"

namespace dlcore {

// Wakes the one thread that sleeps on it. Ringing an awake thread costs an
// atomic store, no system call; a ring while awake makes the next Sleep return
// at once, so none is lost.
// Thread safety: Ring by any thread, the rest by the sleeper alone.
class Doorbell {
 public:
  void Ring() {
    rung_.store(true);
    if (sleeping_.load()) event_.Signal();
  }

  // True when rung since the last Answer. Never blocks.
  [[nodiscard]] bool rung() const { return rung_.load(std::memory_order_acquire); }
  // Forgets rings so far; what they announce must be looked at afterwards.
  void Answer() { rung_.exchange(false, std::memory_order_acq_rel); }

  // Until rung or the timeout.
  void Sleep(double timeout_s) {
    // Both sides store their own flag, then load the other's (seq_cst): at
    // least one of them sees the other.
    sleeping_.store(true);
    if (!rung_.load() && event_.Wait(timeout_s)) event_.Drain();
    sleeping_.store(false);
  }

  [[nodiscard]] bool valid() const { return event_.valid(); }

 private:
  std::atomic<bool> rung_{false};
  std::atomic<bool> sleeping_{false};
  EventFd event_;
};

}  // namespace dlcore

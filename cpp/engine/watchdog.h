#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "engine/engine_loop.h"

namespace dlcore {

// Notices a loop that has live requests and makes no progress: dumps its state
// to the log and fails it, so that no client waits forever without a word.
// Thread safety: one owner; it runs a thread of its own.
class Watchdog {
 public:
  // timeout_s <= 0: watches nothing.
  Watchdog(std::shared_ptr<EngineLoop> loop, double timeout_s);
  ~Watchdog();  // joins at once

 private:
  void Watch();

  std::shared_ptr<EngineLoop> loop_;
  double timeout_s_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace dlcore

#include "engine/watchdog.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "base/log.h"

namespace dlcore {

Watchdog::Watchdog(std::shared_ptr<EngineLoop> loop, double timeout_s)
    : loop_(std::move(loop)), timeout_s_(timeout_s) {
  if (timeout_s_ > 0) thread_ = std::thread([this] { Watch(); });
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Watchdog::Watch() {
  using Clock = std::chrono::steady_clock;
  const auto period = std::chrono::duration<double>(std::clamp(timeout_s_ / 8, 0.005, 1.0));
  uint64_t seen = loop_->progress();
  Clock::time_point since = Clock::now();
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, period, [this] { return stop_; })) {
    const uint64_t now = loop_->progress();
    if (now != seen || loop_->outputs().num_live() == 0) {
      seen = now;
      since = Clock::now();
      continue;
    }
    if (std::chrono::duration<double>(Clock::now() - since).count() < timeout_s_) continue;
    const std::string why = "no progress for " + std::to_string(timeout_s_) +
                            " s (watchdog_timeout_s) with requests pending";
    Log(LogLevel::kError, "watchdog: " + why + "\n" + loop_->DebugString());
    loop_->Fail(why);
    return;
  }
}

}  // namespace dlcore

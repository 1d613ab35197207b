// What other threads do with the loop; engine_loop.cc is what its own thread does.
#include <chrono>
#include <cstdint>
#include <limits>
#include <utility>

#include "base/log.h"
#include "engine/engine_loop.h"

namespace dlcore {
namespace {

constexpr auto kDebugAnswerLimit = std::chrono::milliseconds(200);

}  // namespace

Status EngineLoop::Submit(Request request) {
  size_t max_live = std::numeric_limits<size_t>::max();
  if (options_.max_waiting_requests > 0) {
    // While nothing waits there is room for max_num_seqs; else only for what runs.
    const bool full = num_waiting_.load(std::memory_order_relaxed) > 0;
    const int32_t can_run =
        full ? num_running_.load(std::memory_order_relaxed) : options_.limits.max_num_seqs;
    max_live = static_cast<size_t>(can_run) + static_cast<size_t>(options_.max_waiting_requests);
  }
  if (Status status = outputs_.Open(request.id, max_live); !status.ok()) return status;
  inbox_.Push(std::move(request));
  doorbell_.Ring();
  return {};
}

void EngineLoop::Abort(RequestId id) {
  inbox_.Push(id);
  doorbell_.Ring();
}

void EngineLoop::RequestStop() {
  stop_.store(true, std::memory_order_release);
  doorbell_.Ring();
}

void EngineLoop::Fail(const std::string& message) {
  if (!healthy_.exchange(false)) return;
  Log(LogLevel::kError, "the engine failed: " + message);
  outputs_.Close(FinishReason::kError, message);
  RequestStop();
}

EngineStats EngineLoop::Stats() const {
  EngineStats stats = published_.Load();
  stats.healthy = healthy_.load();
  return stats;
}

const char* EngineLoop::Name(Phase phase) {
  switch (phase) {
    case Phase::kStopped:
      return "stopped";
    case Phase::kIdle:
      return "idle";
    case Phase::kWaiting:
      return "waiting for token constraints";
    case Phase::kPlan:
      return "planning";
    case Phase::kLaunch:
      return "launching";
    case Phase::kDevice:
      return "waiting for the device";
    case Phase::kCommit:
      return "committing";
  }
  return "?";
}

std::string EngineLoop::DebugString() {
  const Phase phase = phase_.load(std::memory_order_relaxed);
  const EngineStats stats = Stats();
  std::string text = std::string("engine: ") + Name(phase) + (stats.healthy ? "" : ", unhealthy") +
                     "\n  steps=" + std::to_string(stats.num_steps) +
                     " live=" + std::to_string(outputs_.num_live()) +
                     " running=" + std::to_string(stats.num_running) +
                     " waiting=" + std::to_string(stats.num_waiting) +
                     " free_blocks=" + std::to_string(stats.num_free_blocks) + "/" +
                     std::to_string(stats.num_kv_blocks) + "\n";
  if (phase == Phase::kStopped) return text;
  // Only the loop's thread may look into the scheduler, so it is asked to.
  std::unique_lock lock(debug_mutex_);
  debug_wanted_.store(true, std::memory_order_release);
  doorbell_.Ring();
  const bool answered =
      debug_answered_.wait_for(lock, kDebugAnswerLimit, [this] { return !debug_wanted_.load(); });
  return text + (answered ? debug_text_ : "scheduler: the loop does not answer\n");
}

}  // namespace dlcore

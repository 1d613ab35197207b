#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "base/seqlock.h"
#include "dlcore/engine.h"
#include "engine/doorbell.h"
#include "engine/inbox.h"
#include "engine/kv_link.h"
#include "engine/output_queue.h"
#include "engine/step_pipeline.h"
#include "sched/scheduler.h"

namespace dlcore {

// The loop of one engine and everything its thread owns. The thread runs Run();
// other threads meet it in the inbox, the doorbell, the output queue and atomics.
class EngineLoop {
 public:
  EngineLoop(const EngineOptions& options, std::unique_ptr<StepPipeline> pipeline);

  // Before the thread starts.
  GraphTable& graphs() { return pipeline_->graphs(); }
  void SetKvLink(std::unique_ptr<KvLink> link) { kv_link_ = std::move(link); }
  // Null while the engine moves no KV. Its any-thread methods alone while Run is.
  KvLink* kv_link() { return kv_link_.get(); }
  // OutOfDescriptors and the like; OK when the loop can run.
  [[nodiscard]] Status CheckUsable() const;

  // The engine thread's body; returns after RequestStop or Fail.
  void Run();
  // Engine thread has left Run and nothing is on the device any more.
  [[nodiscard]] bool drained() const { return drained_.load(); }

  // Any thread.
  Status Submit(Request request);
  void Abort(RequestId id);
  void Wake() { doorbell_.Ring(); }
  void RequestStop();
  // Ends every request with `message` and the loop with it. Idempotent.
  void Fail(const std::string& message);
  [[nodiscard]] EngineStats Stats() const;
  [[nodiscard]] std::string DebugString();
  // Grows with every step, commit and look at the inbox.
  [[nodiscard]] uint64_t progress() const { return progress_.load(std::memory_order_relaxed); }
  OutputQueue& outputs() { return outputs_; }

  // Engine thread, from within an executable: layers [0, layers_done) of the KV of
  // the step it runs are written. InvalidArgument anywhere else.
  Status ReportLayers(int32_t layers_done);

 private:
  enum class Phase : uint8_t { kStopped, kIdle, kWaiting, kPlan, kLaunch, kDevice, kCommit };

  // Engine thread only.
  Status Turn();
  void TakeInbox();
  void DeliverKv();
  void PostKv();
  Status LaunchSteps();
  Status Launch(const StepPlan& plan);
  void AnnounceLayers(int32_t* announced);
  Status CommitOldest();
  Status WaitForOldest(bool* done);
  void HandOut();
  void Rest();
  void RestWithWork();
  void DrainDevice();
  void PublishStats();
  void AnswerDebug();
  void Enter(Phase phase) { phase_.store(phase, std::memory_order_relaxed); }
  void Progress() { progress_.fetch_add(1, std::memory_order_relaxed); }
  [[nodiscard]] bool ending() const { return stop_.load(std::memory_order_acquire); }
  static const char* Name(Phase phase);

  const EngineOptions options_;
  const int depth_;  // steps in flight: 2 = plan ahead
  std::unique_ptr<StepPipeline> pipeline_;
  Scheduler scheduler_;
  OutputBatch batch_;
  EngineStats stats_;
  const StepPlan* launching_ = nullptr;
  double rest_s_ = 0;  // how long the next rest with work lasts
  std::optional<std::chrono::steady_clock::time_point> resting_since_;

  Inbox inbox_;
  Doorbell doorbell_;
  OutputQueue outputs_;
  SeqLock<EngineStats> published_;
  std::atomic<int32_t> num_running_{0};
  std::atomic<int32_t> num_waiting_{0};
  std::atomic<uint64_t> progress_{0};
  std::atomic<Phase> phase_{Phase::kStopped};
  std::atomic<std::thread::id> thread_id_;  // of the thread in Run
  std::atomic<bool> stop_{false};
  std::atomic<bool> healthy_{true};
  std::atomic<bool> drained_{true};

  std::mutex debug_mutex_;
  std::condition_variable debug_answered_;
  std::atomic<bool> debug_wanted_{false};
  std::string debug_text_;  // guarded by debug_mutex_

  // Null unless this engine moves KV. Last: its threads ring the doorbell.
  std::unique_ptr<KvLink> kv_link_;
};

}  // namespace dlcore

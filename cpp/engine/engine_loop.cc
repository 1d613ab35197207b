#include "engine/engine_loop.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>
#include <variant>

#include "base/log.h"
#include "engine/backoff.h"

namespace dlcore {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr double kIdleSleepSeconds = 1.0;
// Work that cannot run now is looked at again this often even when nobody rings.
constexpr double kFirstRestSeconds = 0.001;
constexpr double kLongestRestSeconds = 0.1;
// How long a stopping loop waits for the steps on the device.
constexpr auto kDrainLimit = std::chrono::seconds(2);

double SecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

int Depth(const EngineOptions& options, const StepPipeline& pipeline) {
  return options.async_scheduling.value_or(pipeline.asynchronous()) ? StepPipeline::kDepth : 1;
}

// The queue's bound is checked where a caller can still be told: in Submit.
EngineOptions WithoutQueueBound(EngineOptions options) {
  options.max_waiting_requests = 0;
  return options;
}

}  // namespace

EngineLoop::EngineLoop(const EngineOptions& options, std::unique_ptr<StepPipeline> pipeline)
    : options_(options),
      depth_(Depth(options, *pipeline)),
      pipeline_(std::move(pipeline)),
      scheduler_(WithoutQueueBound(options)) {
  PublishStats();
}

Status EngineLoop::CheckUsable() const {
  if (doorbell_.valid() && outputs_.valid()) return {};
  return Status::ResourceExhausted("eventfd: the process is out of file descriptors");
}

void EngineLoop::Run() {
  Backoff::MakeNapsPrecise();
  thread_id_.store(std::this_thread::get_id());
  drained_.store(false);
  Status status = pipeline_->BindThread();
  while (status.ok() && !ending()) status = Turn();
  if (!status.ok()) Fail(status.message());
  DrainDevice();
  Enter(Phase::kStopped);
  AnswerDebug();
}

Status EngineLoop::Turn() {
  TakeInbox();
  DeliverKv();
  if (Status status = LaunchSteps(); !status.ok()) return status;
  if (pipeline_->in_flight() > 0) return CommitOldest();
  HandOut();
  Rest();
  return {};
}

void EngineLoop::TakeInbox() {
  doorbell_.Answer();
  AnswerDebug();
  for (Inbox::Item& item : inbox_.Drain()) {
    if (const auto* aborted = std::get_if<RequestId>(&item)) {
      scheduler_.Abort(*aborted);
      if (kv_link_ != nullptr) kv_link_->Abort(*aborted);
      continue;
    }
    auto& request = std::get<Request>(item);
    const RequestId id = request.id;
    const Status status = scheduler_.Submit(std::move(request));
    if (status.ok()) continue;
    SequenceOutput refused;
    refused.id = id;
    refused.finish_reason = FinishReason::kError;
    refused.error = status.message();
    batch_.outputs.push_back(std::move(refused));
  }
}

void EngineLoop::DeliverKv() {
  if (kv_link_ != nullptr) kv_link_->Deliver(&scheduler_);
}

// After a plan, which starts pulls and grants leases: a lease's name is wanted
// before its step is over.
void EngineLoop::PostKv() {
  if (kv_link_ == nullptr) return;
  kv_link_->Post(&scheduler_, &batch_);
  outputs_.Push(&batch_);
}

Status EngineLoop::LaunchSteps() {
  while (pipeline_->in_flight() < depth_) {
    const SteadyClock::time_point start = SteadyClock::now();
    Enter(Phase::kPlan);
    const StepPlan& plan = scheduler_.NextPlan();
    PostKv();
    if (plan.empty()) return {};
    Enter(Phase::kLaunch);
    if (Status status = Launch(plan); !status.ok()) return status;
    Progress();
    resting_since_.reset();
    stats_.step_cpu_seconds += SecondsSince(start);
  }
  return {};
}

Status EngineLoop::Launch(const StepPlan& plan) {
  launching_ = &plan;
  Status status = pipeline_->Launch(plan);
  launching_ = nullptr;
  return status;
}

Status EngineLoop::ReportLayers(int32_t layers_done) {
  if (std::this_thread::get_id() != thread_id_.load() || launching_ == nullptr) {
    return Status::InvalidArgument("report_layers: only the step the engine calls may report");
  }
  if (kv_link_ != nullptr) kv_link_->MarkLayersDone(launching_->fills, layers_done);
  return {};
}

// Before a step is over, readers of the leases it fills may have the layers that
// are written. Steps end in order, so all tokens of earlier steps are written too.
void EngineLoop::AnnounceLayers(int32_t* announced) {
  const StepPlan& plan = pipeline_->OldestPlan();
  if (kv_link_ == nullptr || plan.fills.empty()) return;
  const int32_t done = pipeline_->OldestLayersDone();
  if (done <= *announced) return;
  *announced = done;
  kv_link_->MarkLayersDone(plan.fills, done);
}

Status EngineLoop::CommitOldest() {
  bool done = false;
  const SteadyClock::time_point start = SteadyClock::now();
  Enter(Phase::kDevice);
  if (Status status = WaitForOldest(&done); !status.ok()) return status;
  const SteadyClock::time_point ready = SteadyClock::now();
  stats_.device_wait_seconds += std::chrono::duration<double>(ready - start).count();
  if (!done) return {};
  Enter(Phase::kCommit);
  scheduler_.Commit(pipeline_->OldestResult());
  pipeline_->PopOldest();
  ++stats_.num_steps;
  HandOut();
  Progress();
  stats_.step_cpu_seconds += SecondsSince(ready);
  return {};
}

// Returns early, not done, when something arrived that may fill a free place in
// the pipeline.
Status EngineLoop::WaitForOldest(bool* done) {
  Backoff backoff;
  int32_t announced = 0;
  while (!ending()) {
    if (Status status = pipeline_->QueryOldest(done); !status.ok() || *done) return status;
    AnnounceLayers(&announced);
    if (doorbell_.rung() && pipeline_->in_flight() < depth_) return {};
    if (debug_wanted_.load(std::memory_order_relaxed)) AnswerDebug();
    backoff.Pause();
  }
  return {};
}

void EngineLoop::HandOut() {
  scheduler_.TakeOutputs(&batch_);
  if (kv_link_ != nullptr) kv_link_->Post(&scheduler_, &batch_);  // what may be read
  PublishStats();  // first: whoever has an output finds it counted
  outputs_.Push(&batch_);
}

void EngineLoop::Rest() {
  Progress();
  if (scheduler_.HasWork()) return RestWithWork();
  resting_since_.reset();
  Enter(Phase::kIdle);
  const bool leases = kv_link_ != nullptr && kv_link_->holds_leases();
  doorbell_.Sleep(leases ? kLongestRestSeconds : kIdleSleepSeconds);
}

// Everything left waits for a token constraint, for KV of another node, or for
// blocks under a lease: those ring when ready.
void EngineLoop::RestWithWork() {
  Enter(Phase::kWaiting);
  if (!resting_since_) {
    resting_since_ = SteadyClock::now();
    rest_s_ = kFirstRestSeconds;
  }
  // A pull follows another node's computation, and has a timeout of its own.
  if (scheduler_.Stats().num_migrating > 0) resting_since_ = SteadyClock::now();
  if (options_.watchdog_timeout_s > 0 &&
      SecondsSince(*resting_since_) > options_.watchdog_timeout_s) {
    // The device and the loop are well, so only these requests fail.
    Log(LogLevel::kError, "nothing could be scheduled for " +
                              std::to_string(options_.watchdog_timeout_s) + " s\n" +
                              scheduler_.DebugString());
    scheduler_.FailAll("no token mask and no block came within watchdog_timeout_s");
    resting_since_.reset();
    return;
  }
  doorbell_.Sleep(rest_s_);
  rest_s_ = std::min(rest_s_ * 2, kLongestRestSeconds);
}

// The device may write into our buffers until the last step is over.
void EngineLoop::DrainDevice() {
  const SteadyClock::time_point deadline = SteadyClock::now() + kDrainLimit;
  while (pipeline_->in_flight() > 0 && SteadyClock::now() < deadline) {
    bool done = false;
    if (!pipeline_->QueryOldest(&done).ok()) return;
    if (done) {
      pipeline_->PopOldest();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }
  drained_.store(pipeline_->settled());
}

void EngineLoop::PublishStats() {
  const SchedulerStats now = scheduler_.Stats();
  stats_.num_running = now.num_running;
  stats_.num_waiting = now.num_waiting;
  stats_.num_free_blocks = now.num_free_blocks;
  stats_.num_cached_blocks = now.num_cached_blocks;
  stats_.num_referenced_blocks = now.num_referenced_blocks;
  stats_.num_kv_blocks = now.num_kv_blocks;
  stats_.num_preemptions = now.num_preemptions;
  stats_.num_prompt_tokens = now.num_prompt_tokens;
  stats_.num_generated_tokens = now.num_generated_tokens;
  stats_.num_prefix_queries = now.num_prefix_queries;
  stats_.num_prefix_hits = now.num_prefix_hits;
  stats_.num_finished = now.num_finished;
  stats_.queue_time = now.queue_time;
  stats_.num_migrating = now.num_migrating;
  stats_.num_kv_leases = now.num_lent;
  stats_.num_migrations = now.num_migrations;
  stats_.num_failed_migrations = now.num_failed_migrations;
  num_running_.store(now.num_running, std::memory_order_relaxed);
  num_waiting_.store(now.num_waiting, std::memory_order_relaxed);
  published_.Store(stats_);
}

void EngineLoop::AnswerDebug() {
  if (!debug_wanted_.load(std::memory_order_acquire)) return;
  const std::lock_guard lock(debug_mutex_);
  debug_text_ = scheduler_.DebugString();
  debug_wanted_.store(false, std::memory_order_release);
  debug_answered_.notify_all();
}

}  // namespace dlcore

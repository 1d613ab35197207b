#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "device/device.h"
#include "dlcore/engine.h"
#include "dlcore/status.h"
#include "engine/output_view.h"
#include "graph/graph_table.h"
#include "sched/scheduler.h"
#include "sched/step_plan.h"
#include "step/step_builder.h"

namespace dlcore {

// The steps on the device: at most kDepth, oldest first. Each has its own
// pinned mirror of the input arena and its own pinned output buffer, so the CPU
// fills one while the device reads the other; the device has one arena of each,
// ordered by the stream.
// Thread safety: made by one thread, then engine thread only.
class StepPipeline {
 public:
  static constexpr int kDepth = 2;

  static Status Create(const StepLimits& limits, std::unique_ptr<Device> device,
                       Engine::Arenas arenas, std::unique_ptr<StepPipeline>* out);

  GraphTable& graphs() { return graphs_; }
  [[nodiscard]] bool asynchronous() const { return device_->asynchronous(); }
  [[nodiscard]] int in_flight() const { return in_flight_; }
  // True when the device has no more business with our buffers.
  [[nodiscard]] bool settled() const { return in_flight_ == 0 && !half_enqueued_; }

  Status BindThread() { return device_->BindThread(); }
  // Fills a mirror and enqueues copy, executable, copy back and event.
  // REQUIRES: in_flight() < kDepth; `plan` is not empty, and lives until it is popped
  Status Launch(const StepPlan& plan);

  // The oldest step in flight. REQUIRES: in_flight() > 0
  Status QueryOldest(bool* done) { return Oldest().done_event->Query(done); }
  [[nodiscard]] const StepPlan& OldestPlan() { return *Oldest().plan; }
  // Layers whose KV it has written, as far as the layer word says.
  [[nodiscard]] int32_t OldestLayersDone();
  StepResult OldestResult();
  void PopOldest() { --in_flight_, ++num_popped_; }

 private:
  struct Slot {
    std::unique_ptr<PinnedBuffer> mirror;
    std::unique_ptr<PinnedBuffer> output;
    std::unique_ptr<Event> done_event;
    OutputView view;
    const StepPlan* plan = nullptr;
    StepKey key;
    int32_t num_rows = 0;
  };

  StepPipeline(const StepLimits& limits, std::unique_ptr<Device> device, Engine::Arenas arenas);
  Status Allocate(const StepLimits& limits);
  Status Enqueue(Slot& slot, const GraphTable::Selection& chosen, size_t input_bytes);
  Slot& Oldest() { return slots_[num_popped_ % kDepth]; }

  std::unique_ptr<Device> device_;
  Engine::Arenas arenas_;
  std::unique_ptr<Stream> stream_;
  std::array<Slot, kDepth> slots_;
  StepBuilder builder_;
  GraphTable graphs_;
  int in_flight_ = 0;
  bool half_enqueued_ = false;  // a launch failed after its copy was enqueued
  uint64_t num_popped_ = 0;
};

}  // namespace dlcore

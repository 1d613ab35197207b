#include "engine/step_pipeline.h"

#include <atomic>
#include <utility>

namespace dlcore {

StepPipeline::StepPipeline(const StepLimits& limits, std::unique_ptr<Device> device,
                           Engine::Arenas arenas)
    : device_(std::move(device)), arenas_(arenas), builder_(limits) {}

Status StepPipeline::Create(const StepLimits& limits, std::unique_ptr<Device> device,
                            Engine::Arenas arenas, std::unique_ptr<StepPipeline>* out) {
  std::unique_ptr<StepPipeline> made(new StepPipeline(limits, std::move(device), arenas));
  if (Status status = made->Allocate(limits); !status.ok()) return status;
  *out = std::move(made);
  return {};
}

Status StepPipeline::Allocate(const StepLimits& limits) {
  if (Status status = device_->BindThread(); !status.ok()) return status;
  if (Status status = device_->NewStream(&stream_); !status.ok()) return status;
  const size_t input_bytes = StepLayout::MaxInputBytes(limits);
  const size_t output_bytes = StepLayout::MaxOutputBytes(limits);
  for (Slot& slot : slots_) {
    slot.view = OutputView(limits);
    if (Status s = device_->NewPinnedBuffer(input_bytes, &slot.mirror); !s.ok()) return s;
    if (Status s = device_->NewPinnedBuffer(output_bytes, &slot.output); !s.ok()) return s;
    if (Status s = device_->NewEvent(&slot.done_event); !s.ok()) return s;
  }
  return {};
}

Status StepPipeline::Launch(const StepPlan& plan) {
  GraphTable::Selection chosen;
  if (Status status = graphs_.Find(plan.key(), &chosen); !status.ok()) return status;
  Slot& slot = slots_[(num_popped_ + static_cast<uint64_t>(in_flight_)) % kDepth];
  slot.plan = &plan;
  slot.key = chosen.key;
  slot.num_rows = plan.num_rows;
  const size_t used = builder_.Fill(plan, chosen.key, slot.mirror->bytes());
  Status status = Enqueue(slot, chosen, used);
  if (status.ok()) {
    ++in_flight_;
  } else {
    half_enqueued_ = device_->asynchronous();
  }
  return status;
}

Status StepPipeline::Enqueue(Slot& slot, const GraphTable::Selection& chosen, size_t input_bytes) {
  const auto input = slot.mirror->bytes().first(input_bytes);
  const auto output = slot.output->bytes().first(slot.view.Bytes(chosen.key));
  if (Status s = stream_->CopyToDevice(arenas_.input, input); !s.ok()) return s;
  if (Status s = chosen.executable->Launch(chosen.key, *stream_); !s.ok()) return s;
  if (Status s = stream_->CopyToHost(output, arenas_.output); !s.ok()) return s;
  return slot.done_event->Record(*stream_);
}

int32_t StepPipeline::OldestLayersDone() {
  if (arenas_.layer_word == 0) return 0;
  // Acquire: what other threads are told of next was written before the word.
  std::atomic_ref word(*reinterpret_cast<uint64_t*>(arenas_.layer_word));
  return LayerWord::LayersDone(word.load(std::memory_order_acquire), OldestPlan().serial());
}

StepResult StepPipeline::OldestResult() {
  Slot& slot = Oldest();
  return slot.view.Read(slot.key, slot.output->bytes(), slot.num_rows);
}

}  // namespace dlcore

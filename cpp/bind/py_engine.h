#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <nanobind/nanobind.h>

#include "bind/py_constraint.h"
#include "bind/py_executable.h"
#include "dlcore/engine.h"

namespace dlcore {

// The engine as Python holds it: chooses the device, owns host arenas nobody
// else brought, and drops the model's callable when it stops.
// Thread safety: called with the GIL held, which it releases while waiting.
class PyEngine {
 public:
  PyEngine(const EngineOptions& options, const std::string& device, int32_t device_index,
           uint64_t input_arena, uint64_t output_arena, uint64_t layer_word, int64_t null_step_us);
  ~PyEngine();
  PyEngine(const PyEngine&) = delete;
  PyEngine& operator=(const PyEngine&) = delete;

  void AddGraphs(const StepKey& key, const std::vector<uint64_t>& graph_execs);
  void SetEager(nanobind::object step);
  void Start();
  bool Stop();
  void Submit(uint64_t request_id, nanobind::handle prompt_token_ids, const SamplingParams& params,
              int32_t priority, nanobind::bytes cache_salt, const PyConstraint* constraint,
              nanobind::handle resume_token_ids, const KvSource* kv_source, bool hold_kv);
  void SubmitMany(nanobind::sequence requests);
  void Abort(const std::vector<uint64_t>& request_ids);
  bool Poll(double timeout_s, OutputBatch* out);

  [[nodiscard]] const Engine& engine() const { return *engine_; }
  [[nodiscard]] Engine& engine() { return *engine_; }
  [[nodiscard]] Engine::Arenas arenas() const { return arenas_; }
  [[nodiscard]] CallableSlot& slot() { return *slot_; }

 private:
  void AllocateArenas(const EngineOptions& options);

  std::string device_;
  Engine::Arenas arenas_;
  std::shared_ptr<void> host_arenas_;  // null when the caller brought them
  std::shared_ptr<CallableSlot> slot_ = std::make_shared<CallableSlot>();
  std::shared_ptr<Engine> engine_;
};

// Stops every engine that is still alive; the interpreter is about to end and
// no thread may ask for the GIL after that.
void StopAllEngines();

}  // namespace dlcore

#include "bind/py_engine.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include <nanobind/stl/string.h>

#include "bind/bind.h"
#include "device/device.h"
#include "graph/cuda_graph_executable.h"
#include "graph/null_executable.h"

namespace nb = nanobind;

namespace dlcore {
namespace {

// Engines that must be stopped before the interpreter ends. Any thread.
struct LiveEngines {
  std::mutex mutex;
  std::vector<std::weak_ptr<Engine>> engines;
};

LiveEngines& Live() {
  static auto* const live = new LiveEngines;
  return *live;
}

void Remember(const std::shared_ptr<Engine>& engine) {
  LiveEngines& live = Live();
  const std::lock_guard lock(live.mutex);
  std::erase_if(live.engines, [](const auto& weak) { return weak.expired(); });
  live.engines.push_back(engine);
}

std::unique_ptr<Device> MakeDevice(const std::string& name, int32_t index) {
  if (name == "cpu" || name == "null") return NewCpuDevice();
  if (name != "cuda") {
    throw nb::value_error(("device must be 'cpu', 'cuda' or 'null', got '" + name + "'").c_str());
  }
  std::unique_ptr<Device> device;
  ThrowIfError(NewCudaDevice(index, &device));
  return device;
}

struct HostArenas {
  std::unique_ptr<PinnedBuffer> input;
  std::unique_ptr<PinnedBuffer> output;
};

uint64_t AddressOf(PinnedBuffer& buffer) {
  return reinterpret_cast<uint64_t>(buffer.bytes().data());
}

}  // namespace

PyEngine::PyEngine(const EngineOptions& options, const std::string& device, int32_t device_index,
                   uint64_t input_arena, uint64_t output_arena, uint64_t layer_word,
                   int64_t null_step_us)
    : device_(device), arenas_{input_arena, output_arena, layer_word} {
  std::unique_ptr<Device> made = MakeDevice(device, device_index);
  if (device != "cuda" && input_arena == 0 && output_arena == 0) AllocateArenas(options);
  std::unique_ptr<Engine> engine;
  ThrowIfError(Engine::Create(options, std::move(made), arenas_, &engine));
  if (device == "null") {
    ThrowIfError(engine->SetExactExecutable(
        NewNullExecutable(options.limits, arenas_.input, arenas_.output, null_step_us)));
  }
  engine_ = std::move(engine);
  Remember(engine_);
}

PyEngine::~PyEngine() {
  if (engine_ != nullptr) Stop();
}

void PyEngine::AllocateArenas(const EngineOptions& options) {
  auto host = std::make_shared<HostArenas>();
  const std::unique_ptr<Device> cpu = NewCpuDevice();
  ThrowIfError(cpu->NewPinnedBuffer(StepLayout::MaxInputBytes(options.limits), &host->input));
  ThrowIfError(cpu->NewPinnedBuffer(StepLayout::MaxOutputBytes(options.limits), &host->output));
  arenas_ = {AddressOf(*host->input), AddressOf(*host->output)};
  host_arenas_ = std::move(host);
}

void PyEngine::AddGraphs(const StepKey& key, const std::vector<uint64_t>& graph_execs) {
  if (device_ != "cuda") throw nb::value_error("add_graphs needs device='cuda'");
  std::unique_ptr<Executable> executable;
  ThrowIfError(NewCudaGraphExecutable(graph_execs, &executable));
  ThrowIfError(engine_->AddExecutable(key, std::move(executable)));
}

void PyEngine::SetEager(nb::object step) {
  if (device_ == "null") throw nb::value_error("set_eager: device='null' runs no model");
  if (!nb::isinstance<nb::callable>(step)) throw nb::value_error("step must be callable");
  ThrowIfError(engine_->SetExactExecutable(std::make_unique<PyExecutable>(slot_, host_arenas_)));
  slot_->step = std::move(step);
}

void PyEngine::Start() { ThrowIfError(engine_->Start()); }

bool PyEngine::Stop() {
  bool drained;
  {
    // The engine thread may need the GIL to end its step.
    const nb::gil_scoped_release released;
    drained = engine_->Stop();
  }
  slot_->step.reset();
  return drained;
}

void PyEngine::Submit(uint64_t request_id, nb::handle prompt_token_ids,
                      const SamplingParams& params, int32_t priority, nb::bytes cache_salt,
                      const PyConstraint* constraint, nb::handle resume_token_ids,
                      const KvSource* kv_source, bool hold_kv) {
  Request request;
  request.id = RequestId(request_id);
  request.prompt = ToTokenIds(prompt_token_ids, "prompt_token_ids");
  request.sampling = params;
  request.priority = priority;
  if (!resume_token_ids.is_none()) {
    request.resume_token_ids = ToTokenIds(resume_token_ids, "resume_token_ids");
  }
  request.cache_salt.assign(cache_salt.c_str(), cache_salt.size());
  if (constraint != nullptr) {
    constraint->constraint->SetWake([weak = std::weak_ptr<Engine>(engine_)] {
      if (const auto engine = weak.lock()) engine->Wake();
    });
    request.constraint = constraint->constraint;
  }
  if (kv_source != nullptr) request.kv_source = *kv_source;
  request.hold_kv = hold_kv;
  ThrowIfError(engine_->Submit(std::move(request)));
}

// Each item holds submit's arguments in order; those with defaults may be left out.
void PyEngine::SubmitMany(nb::sequence requests) {
  for (nb::handle item : requests) {
    const nb::tuple args = nb::cast<nb::tuple>(item);
    const size_t given = args.size();
    if (given < 3 || given > 7) {
      throw nb::value_error(
          "requests: each item is (request_id, prompt_token_ids, params[, priority, "
          "cache_salt, constraint, resume_token_ids])");
    }
    Submit(nb::cast<uint64_t>(args[0]), args[1], nb::cast<const SamplingParams&>(args[2]),
           given > 3 ? nb::cast<int32_t>(args[3]) : 0,
           given > 4 ? nb::cast<nb::bytes>(args[4]) : nb::bytes("", 0),
           given > 5 && !args[5].is_none() ? &nb::cast<const PyConstraint&>(args[5]) : nullptr,
           given > 6 ? nb::handle(args[6]) : nb::handle(nb::none()), nullptr, false);
  }
}

void PyEngine::Abort(const std::vector<uint64_t>& request_ids) {
  for (const uint64_t id : request_ids) engine_->Abort(RequestId(id));
}

bool PyEngine::Poll(double timeout_s, OutputBatch* out) {
  const nb::gil_scoped_release released;
  // `engine_` is shared: stop() by another thread meanwhile is harmless.
  const std::shared_ptr<Engine> engine = engine_;
  return engine->Poll(timeout_s, out);
}

void StopAllEngines() {
  std::vector<std::weak_ptr<Engine>> engines;
  {
    LiveEngines& live = Live();
    const std::lock_guard lock(live.mutex);
    engines = live.engines;
  }
  const nb::gil_scoped_release released;
  for (const auto& weak : engines) {
    if (const auto engine = weak.lock()) engine->Stop();
  }
}

}  // namespace dlcore

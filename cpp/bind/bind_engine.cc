#include <optional>
#include <string>
#include <utility>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "base/text.h"
#include "bind/bind.h"
#include "bind/output_arrays.h"
#include "bind/py_engine.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dlcore {
namespace {

// A model that holds its engine and whose step the engine calls is a cycle the
// garbage collector must see.
int Traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  if (!nb::inst_ready(self)) return 0;
  Py_VISIT(nb::inst_ptr<PyEngine>(self)->slot().step.ptr());
  return 0;
}

int Clear(PyObject* self) {
  nb::inst_ptr<PyEngine>(self)->slot().step.reset();
  return 0;
}

PyType_Slot kEngineSlots[] = {{Py_tp_traverse, reinterpret_cast<void*>(&Traverse)},
                              {Py_tp_clear, reinterpret_cast<void*>(&Clear)},
                              {0, nullptr}};

using StatsDict = nb::typed<nb::dict, nb::str, nb::float_>;

constexpr std::pair<const char*, LeaseRefusal> kRefusalNames[kNumLeaseRefusals] = {
    {"num_kv_refused_key", LeaseRefusal::kKey},
    {"num_kv_refused_unknown", LeaseRefusal::kUnknown},
    {"num_kv_refused_ended", LeaseRefusal::kEnded},
    {"num_kv_refused_outside", LeaseRefusal::kOutside},
};

// "queue_time_le_0.01"; the last bucket is "queue_time_le_inf".
std::string BucketKey(const char* name, size_t bucket) {
  Text key;
  key << name << "_le_";
  if (bucket < TimeHistogram::kBounds.size()) {
    key << TimeHistogram::kBounds[bucket];
  } else {
    key << "inf";
  }
  return key.str();
}

void Set(nb::dict* d, const std::string& name, double value) { (*d)[name.c_str()] = value; }

void SetHistogram(nb::dict* d, const char* name, const TimeHistogram& histogram) {
  for (size_t i = 0; i < histogram.counts.size(); ++i) {
    Set(d, BucketKey(name, i), static_cast<double>(histogram.counts[i]));
  }
  Set(d, std::string(name) + "_seconds", histogram.seconds);
}

void SetKvCounters(nb::dict* d, const LeaseCounters& leases, const MigrationCounters& pulls) {
  const auto add = [d](const char* name, uint64_t n) { Set(d, name, static_cast<double>(n)); };
  add("num_leases_granted", leases.granted);
  add("num_leases_released", leases.released);
  add("num_leases_aborted", leases.aborted);
  add("num_leases_expired", leases.expired);
  add("num_kv_bytes_served", leases.bytes);
  add("num_kv_bytes_served_early", leases.early_bytes);
  for (const auto& [name, reason] : kRefusalNames) {
    add(name, leases.refused[static_cast<size_t>(reason)]);
  }
  add("num_pulls_completed", pulls.completed);
  add("num_pulls_failed", pulls.failed);
  add("num_pulls_aborted", pulls.aborted);
  add("num_kv_bytes_pulled", pulls.bytes);
  add("num_kv_bytes_pulled_early", pulls.early_bytes);
  SetHistogram(d, "pull_time", pulls.seconds);
}

StatsDict Stats(const PyEngine& self) {
  const EngineStats s = self.engine().Stats();
  nb::dict d;
  const auto add = [&d](const char* name, auto value) {
    Set(&d, name, static_cast<double>(value));
  };
  add("num_running", s.num_running);
  add("num_waiting", s.num_waiting);
  add("num_free_blocks", s.num_free_blocks);
  add("num_cached_blocks", s.num_cached_blocks);
  add("num_referenced_blocks", s.num_referenced_blocks);
  add("num_kv_blocks", s.num_kv_blocks);
  add("num_preemptions", s.num_preemptions);
  add("num_prompt_tokens", s.num_prompt_tokens);
  add("num_generated_tokens", s.num_generated_tokens);
  add("num_prefix_queries", s.num_prefix_queries);
  add("num_prefix_hits", s.num_prefix_hits);
  add("num_finished", s.num_finished);
  SetHistogram(&d, "queue_time", s.queue_time);
  add("num_steps", s.num_steps);
  add("step_cpu_seconds", s.step_cpu_seconds);
  add("device_wait_seconds", s.device_wait_seconds);
  add("num_migrating", s.num_migrating);
  add("num_kv_leases", s.num_kv_leases);
  add("num_migrations", s.num_migrations);
  add("num_failed_migrations", s.num_failed_migrations);
  SetKvCounters(&d, s.leases, s.pulls);
  add("healthy", s.healthy ? 1 : 0);
  return StatsDict(d);
}

std::unique_ptr<OutputArrays> Poll(PyEngine& self, double timeout_s) {
  OutputBatch batch;
  if (!self.Poll(timeout_s, &batch)) return nullptr;
  return std::make_unique<OutputArrays>(std::move(batch));
}

void OpenKvTransfer(PyEngine& self, const KvTransferOptions& options) {
  Status status;
  {
    const nb::gil_scoped_release released;
    status = self.engine().OpenKvTransfer(options);
  }
  ThrowIfError(status);
}

std::string ChooseKvEndpoint(const PyEngine& self, const std::vector<std::string>& offered) {
  std::string endpoint;
  ThrowIfError(self.engine().ChooseKvEndpoint(offered, &endpoint));
  return endpoint;
}

bool ReleaseKvLease(PyEngine& self, uint64_t lease_id, uint64_t epoch) {
  const nb::gil_scoped_release released;
  return self.engine().ReleaseKvLease({lease_id, epoch}).ok();
}

constexpr const char* kEngineDoc =
    "The loop: one native thread that schedules, launches and hands out tokens.\n"
    "device: 'cpu' (set_eager), 'cuda' (add_graphs, or set_eager for a model under\n"
    "development) or 'null' (no model: for benchmarks; each step takes null_step_us\n"
    "microseconds). Arenas are addresses of device memory of StepLayout.max_input_bytes and\n"
    "max_output_bytes that outlives the engine; on 'cpu' and 'null' both may be 0 and the\n"
    "engine allocates them. Raises ValueError naming the field, EngineUnavailable where the\n"
    "device is missing.";

constexpr const char* kSubmitDoc =
    "Queues a request. prompt_token_ids: int32 or int64 array, or a sequence of ints.\n"
    "resume_token_ids: output tokens generated elsewhere, fewer than max_tokens; they count as\n"
    "this request's own, and its outputs hold only what follows them.\n"
    "kv_source: where to pull the prompt's KV from instead of computing it. hold_kv: when\n"
    "max_tokens ends the request its KV stays, under the lease OutputBatch.kv_lease names. Raises\n"
    "ValueError naming the field, QueueFull (max_waiting_requests), EngineUnavailable.";

}  // namespace

void BindEngine(nb::module_& m) {
  nb::class_<PyEngine>(m, "Engine", kEngineDoc, nb::type_slots(kEngineSlots))
      .def(nb::init<const EngineOptions&, const std::string&, int32_t, uint64_t, uint64_t, uint64_t,
                    int64_t>(),
           "options"_a, nb::kw_only(), "device"_a, "device_index"_a = 0, "input_arena"_a = 0,
           "output_arena"_a = 0, "layer_word"_a = 0, "null_step_us"_a = 0)
      .def("add_graphs", &PyEngine::AddGraphs, "key"_a, "graph_execs"_a,
           "Registers raw CUgraphExec handles, launched in order, for steps up to `key`.")
      .def("set_eager", &PyEngine::SetEager, "step"_a,
           nb::sig("def set_eager(self, step: collections.abc.Callable[[StepKey], None]) -> None"),
           "Runs every step by calling `step` on the engine thread with exact counts. An\n"
           "exception fails all requests with its text.")
      .def("open_kv_transfer", &OpenKvTransfer, "options"_a,
           "Lets the engine give and take KV (submit's hold_kv and kv_source). Before start,\n"
           "once. The memory of the layout must outlive the engine. Raises ValueError naming the\n"
           "field, EngineUnavailable where a transport cannot listen.")
      .def(
          "report_layers",
          [](PyEngine& self, int32_t layers_done) {
            ThrowIfError(self.engine().ReportLayers(layers_done));
          },
          "layers_done"_a,
          "From within set_eager's callable: layers [0, layers_done) of the KV of all tokens of\n"
          "its step are written, so readers of leases may have them. ValueError anywhere else.")
      .def(
          "kv_endpoints", [](const PyEngine& self) { return self.engine().KvEndpoints(); },
          "What other engines connect to; empty unless this one serves leases.")
      .def("choose_kv_endpoint", &ChooseKvEndpoint, "offered"_a,
           "The fastest of another engine's endpoints this one can use. Raises EngineUnavailable\n"
           "saying why none fits.")
      .def("release_kv_lease", &ReleaseKvLease, "lease_id"_a, "epoch"_a,
           "Ends a lease this engine granted. False when it had ended already.")
      .def("start", &PyEngine::Start, nb::call_guard<nb::gil_scoped_release>())
      .def(
          "stop", &PyEngine::Stop,
          "Aborts what is left, joins the thread and drops the callable. Idempotent. False when a\n"
          "step hangs: its thread is left behind, and the arenas and the KV pool must stay.")
      .def("submit", &PyEngine::Submit, "request_id"_a, "prompt_token_ids"_a, "params"_a,
           nb::kw_only(), "priority"_a = 0, "cache_salt"_a = nb::bytes("", 0),
           "constraint"_a = nb::none(), "resume_token_ids"_a = nb::none(),
           "kv_source"_a = nb::none(), "hold_kv"_a = false,
           nb::sig("def submit(self, request_id: int, prompt_token_ids: "
                   "collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32] | "
                   "numpy.typing.NDArray[numpy.int64], params: SamplingParams, *, "
                   "priority: int = 0, cache_salt: bytes = b'', "
                   "constraint: TokenConstraint | None = None, resume_token_ids: "
                   "collections.abc.Sequence[int] | numpy.typing.NDArray[numpy.int32] | "
                   "numpy.typing.NDArray[numpy.int64] | None = None, "
                   "kv_source: KvSource | None = None, hold_kv: bool = False) -> None"),
           kSubmitDoc)
      .def("submit_many", &PyEngine::SubmitMany, "requests"_a,
           nb::sig("def submit_many(self, requests: "
                   "collections.abc.Sequence[tuple[typing.Any, ...]]) -> None"),
           "Submits each (request_id, prompt_token_ids, params[, priority, cache_salt,\n"
           "constraint, resume_token_ids]) in order; stops at the first that raises.")
      .def("abort", &PyEngine::Abort, "request_ids"_a,
           "Ends requests; each live one gets a last row with finish reason 3.")
      .def("poll", &Poll, "timeout_s"_a,
           nb::sig("def poll(self, timeout_s: float) -> OutputBatch | None"),
           "Takes all outputs there are, waiting up to timeout_s for the first; None on timeout\n"
           "and, at once, when the engine has ended. Releases the GIL while waiting.")
      .def(
          "output_fd", [](const PyEngine& self) { return self.engine().output_fd(); },
          "A descriptor that is readable while outputs wait; for event loops.")
      .def("stats", &Stats, "The counters of cpp/include/dlcore/engine.h's EngineStats.")
      .def(
          "is_healthy", [](const PyEngine& self) { return self.engine().Stats().healthy; },
          "False after a stall or a lost device.")
      .def(
          "debug_string", [](const PyEngine& self) { return self.engine().DebugString(); },
          nb::call_guard<nb::gil_scoped_release>(), "State for people, bounded in time.")
      .def_prop_ro("input_arena", [](const PyEngine& self) { return self.arenas().input; })
      .def_prop_ro("output_arena", [](const PyEngine& self) { return self.arenas().output; });
}

}  // namespace dlcore

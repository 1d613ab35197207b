#include "dlcore/engine.h"

#include <chrono>
#include <future>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/log.h"
#include "device/device.h"
#include "engine/engine_loop.h"
#include "engine/watchdog.h"
#include "graph/executable.h"
#include "sched/validate.h"

namespace dlcore {
namespace {

// Longer than the loop waits for the device when it stops.
constexpr auto kJoinLimit = std::chrono::seconds(5);

// Keeps for the life of the process what a thread or a device that does not
// answer may still write to. Freeing it would corrupt memory or hang.
void Abandon(std::shared_ptr<EngineLoop> loop) {
  static std::mutex mutex;
  static auto* const abandoned = new std::vector<std::shared_ptr<EngineLoop>>;
  const std::lock_guard lock(mutex);
  abandoned->push_back(std::move(loop));
}

}  // namespace

struct Engine::Impl {
  enum class State : uint8_t { kNew, kStarted, kStopped };

  Impl(const EngineOptions& engine_options, std::unique_ptr<StepPipeline> pipeline)
      : options(engine_options),
        loop(std::make_shared<EngineLoop>(engine_options, std::move(pipeline))) {}

  // REQUIRES: mutex is held
  Status CheckNew(const char* call) const {
    if (state == State::kNew) return {};
    return Status::Unavailable(std::string(call) + " must come before start()");
  }
  // The pool others see must be the pool the scheduler deals in.
  Status CheckPool(const KvLayout& layout) const;
  void Join();

  const EngineOptions options;
  std::shared_ptr<EngineLoop> loop;
  std::mutex mutex;  // guards what is below
  State state = State::kNew;
  std::unique_ptr<Watchdog> watchdog;
  std::thread thread;
  std::future<void> left;  // ready when the thread is about to end
  bool moves_kv = false;   // before start() only
  std::mutex kv_mutex;     // held while a caller uses the loop's kv_link
};

Status Engine::Impl::CheckPool(const KvLayout& layout) const {
  if (layout.groups.size() != 1) {
    return Status::InvalidArgument("layout.groups: one cache group can be moved, not " +
                                   std::to_string(layout.groups.size()));
  }
  const KvGroup& group = layout.groups.front();
  if (group.block_size != options.limits.block_size || group.num_blocks != options.num_kv_blocks) {
    return Status::InvalidArgument(
        "layout.groups: block_size and num_blocks must be those of EngineOptions");
  }
  return {};
}

// The thread owns a share of the loop, so one that never ends harms nobody.
void Engine::Impl::Join() {
  if (!thread.joinable()) return;
  if (left.wait_for(kJoinLimit) == std::future_status::ready) {
    thread.join();
  } else {
    Log(LogLevel::kError, "the engine thread does not answer; leaving it behind");
    thread.detach();
  }
  if (!loop->drained()) Abandon(loop);
}

Engine::Engine() = default;
Engine::~Engine() { Stop(); }

Status Engine::Create(const EngineOptions& options, std::unique_ptr<Device> device, Arenas arenas,
                      std::unique_ptr<Engine>* out) {
  if (Status status = options.Validate(); !status.ok()) return status;
  if (arenas.input == 0 || arenas.output == 0) {
    return Status::InvalidArgument("input_arena and output_arena must be device addresses");
  }
  std::unique_ptr<StepPipeline> pipeline;
  if (Status status = StepPipeline::Create(options.limits, std::move(device), arenas, &pipeline);
      !status.ok()) {
    return status;
  }
  std::unique_ptr<Engine> engine(new Engine());
  engine->impl_ = std::make_unique<Impl>(options, std::move(pipeline));
  if (Status status = engine->impl_->loop->CheckUsable(); !status.ok()) return status;
  *out = std::move(engine);
  return {};
}

Status Engine::AddExecutable(const StepKey& key, std::unique_ptr<Executable> executable) {
  const std::lock_guard lock(impl_->mutex);
  if (Status status = impl_->CheckNew("add_graphs"); !status.ok()) return status;
  return impl_->loop->graphs().Add(key, std::move(executable));
}

Status Engine::SetExactExecutable(std::unique_ptr<Executable> executable) {
  const std::lock_guard lock(impl_->mutex);
  if (Status status = impl_->CheckNew("set_eager"); !status.ok()) return status;
  return impl_->loop->graphs().SetExact(std::move(executable));
}

Status Engine::OpenKvTransfer(const KvTransferOptions& options) {
  const std::lock_guard lock(impl_->mutex);
  if (Status status = impl_->CheckNew("open_kv_transfer"); !status.ok()) return status;
  if (impl_->loop->kv_link() != nullptr) {
    return Status::InvalidArgument("open_kv_transfer was called before");
  }
  if (Status status = impl_->CheckPool(options.layout); !status.ok()) return status;
  std::unique_ptr<KvLink> link;
  // The loop owns the link, so the link must not own the loop.
  const auto wake = [loop = impl_->loop.get()] { loop->Wake(); };
  if (Status status = KvLink::Create(options, wake, &link); !status.ok()) return status;
  impl_->loop->SetKvLink(std::move(link));
  impl_->moves_kv = true;
  return {};
}

Status Engine::ReportLayers(int32_t layers_done) { return impl_->loop->ReportLayers(layers_done); }

std::vector<std::string> Engine::KvEndpoints() const {
  const std::lock_guard lock(impl_->kv_mutex);
  const KvLink* link = impl_->loop->kv_link();
  return link == nullptr ? std::vector<std::string>() : link->endpoints();
}

Status Engine::ChooseKvEndpoint(std::span<const std::string> offered, std::string* out) const {
  const std::lock_guard lock(impl_->kv_mutex);
  const KvLink* link = impl_->loop->kv_link();
  if (link == nullptr) return Status::Unavailable("this engine takes no KV of others");
  return link->ChooseEndpoint(offered, out);
}

Status Engine::ReleaseKvLease(LeaseRef lease) {
  const std::lock_guard lock(impl_->kv_mutex);
  KvLink* link = impl_->loop->kv_link();
  if (link == nullptr) return Status::PermissionDenied("this engine grants no leases");
  return link->Release(lease);
}

Status Engine::Start() {
  const std::lock_guard lock(impl_->mutex);
  if (Status status = impl_->CheckNew("start"); !status.ok()) return status;
  // Whatever the scheduler plans must have something that runs it.
  const StepLimits& limits = impl_->options.limits;
  const StepKey largest{StepKind::kMixed, SamplerVariant::kFull, limits.max_num_batched_tokens,
                        limits.max_num_seqs, 0};
  GraphTable::Selection ignored;
  if (Status status = impl_->loop->graphs().Find(largest, &ignored); !status.ok()) {
    return Status::InvalidArgument("start: " + status.message());
  }
  std::promise<void> leaving;
  impl_->left = leaving.get_future();
  impl_->thread = std::thread([loop = impl_->loop, done = std::move(leaving)]() mutable {
    loop->Run();
    loop.reset();
    done.set_value();
  });
  impl_->watchdog = std::make_unique<Watchdog>(impl_->loop, impl_->options.watchdog_timeout_s);
  impl_->state = Impl::State::kStarted;
  return {};
}

bool Engine::Stop() {
  if (impl_ == nullptr) return true;
  const std::lock_guard lock(impl_->mutex);
  impl_->state = Impl::State::kStopped;
  impl_->loop->RequestStop();
  impl_->Join();
  impl_->watchdog.reset();
  // After this nothing reads or writes the pool, unless the thread was left behind.
  const bool drained = impl_->loop->drained();
  if (drained) {
    const std::lock_guard kv_lock(impl_->kv_mutex);
    impl_->loop->SetKvLink(nullptr);
  }
  impl_->loop->outputs().Close(FinishReason::kAbort, "the engine is stopped");
  return drained;
}

Status Engine::Submit(Request request) {
  if ((request.kv_source || request.hold_kv) && !impl_->moves_kv) {
    return Status::InvalidArgument("kv_source and hold_kv need open_kv_transfer");
  }
  if (Status status = ValidateRequest(request, impl_->options); !status.ok()) return status;
  return impl_->loop->Submit(std::move(request));
}

void Engine::Abort(RequestId id) { impl_->loop->Abort(id); }
bool Engine::Poll(double timeout_s, OutputBatch* out) {
  return impl_->loop->outputs().Poll(timeout_s, out);
}
int Engine::output_fd() const { return impl_->loop->outputs().fd(); }
void Engine::Wake() { impl_->loop->Wake(); }
EngineStats Engine::Stats() const {
  EngineStats stats = impl_->loop->Stats();
  const std::lock_guard lock(impl_->kv_mutex);
  if (const KvLink* link = impl_->loop->kv_link(); link != nullptr) {
    stats.leases = link->lease_counters();
    stats.pulls = link->migration_counters();
  }
  return stats;
}
std::string Engine::DebugString() const { return impl_->loop->DebugString(); }

}  // namespace dlcore

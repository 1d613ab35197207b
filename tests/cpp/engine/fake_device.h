#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "device/device.h"
#include "graph/executable.h"
#include "graph/null_executable.h"

namespace dlcore::testing {

// What a test holds of a fake GPU: a worker thread runs what was enqueued, in
// order, while the gate is open.
class FakeGpu {
 public:
  FakeGpu() {
    // Detached: a test that stalls the device leaves it behind, as an engine does.
    std::thread([state = state_] { Work(*state); }).detach();
  }
  ~FakeGpu() {
    Abort();
    state_->ended = true;
    state_->wake.notify_all();
  }

  // Forgets what is enqueued and waits for what runs: memory may go after this.
  void Abort() {
    std::unique_lock lock(state_->mutex);
    state_->queue.clear();
    state_->open = false;
    state_->wake.wait(lock, [this] { return !state_->busy; });
  }

  // Closed: nothing that was or will be enqueued runs.
  void SetGate(bool open) {
    const std::lock_guard lock(state_->mutex);
    state_->open = open;
    state_->wake.notify_all();
  }
  void FailLaunches() { state_->fail_launches = true; }
  void FailEvents() { state_->fail_events = true; }
  [[nodiscard]] int num_launches() const { return state_->num_launches; }

  std::unique_ptr<Device> NewDevice() { return std::make_unique<FakeDevice>(state_); }
  std::unique_ptr<Executable> NewExecutable(std::unique_ptr<Executable> model) {
    return std::make_unique<FakeGraph>(state_, std::move(model));
  }

 private:
  using Operation = std::function<void()>;

  struct State {
    std::mutex mutex;
    std::condition_variable wake;
    std::deque<Operation> queue;  // guarded by mutex
    bool open = true;             // guarded by mutex
    bool busy = false;            // guarded by mutex
    std::atomic<bool> ended{false};
    std::atomic<bool> fail_launches{false};
    std::atomic<bool> fail_events{false};
    std::atomic<int> num_launches{0};
  };
  using StatePtr = std::shared_ptr<State>;

  static void Work(State& state) {
    std::unique_lock lock(state.mutex);
    while (!state.ended) {
      if (!state.open || state.queue.empty()) {
        state.wake.wait_for(lock, std::chrono::milliseconds(50));
        continue;
      }
      const Operation operation = std::move(state.queue.front());
      state.queue.pop_front();
      state.busy = true;
      lock.unlock();
      operation();
      lock.lock();
      state.busy = false;
      state.wake.notify_all();
    }
  }

  static Status Enqueue(State& state, Operation operation) {
    const std::lock_guard lock(state.mutex);
    state.queue.push_back(std::move(operation));
    state.wake.notify_all();
    return {};
  }

  class FakeStream final : public Stream {
   public:
    explicit FakeStream(StatePtr state) : state_(std::move(state)), cpu_(NewCpuDevice()) {
      (void)cpu_->NewStream(&copies_);
    }
    Status CopyToDevice(uint64_t device_address, std::span<const std::byte> host) override {
      return Enqueue(*state_, [this, device_address, host] {
        (void)copies_->CopyToDevice(device_address, host);
      });
    }
    Status CopyToHost(std::span<std::byte> host, uint64_t device_address) override {
      return Enqueue(*state_, [this, host, device_address] {
        (void)copies_->CopyToHost(host, device_address);
      });
    }
    [[nodiscard]] void* handle() const override { return nullptr; }

   private:
    StatePtr state_;
    std::unique_ptr<Device> cpu_;
    std::unique_ptr<Stream> copies_;
  };

  class FakeEvent final : public Event {
   public:
    explicit FakeEvent(StatePtr state) : state_(std::move(state)) {}
    Status Record(Stream& /*stream*/) override {
      done_->store(false);
      return Enqueue(*state_, [done = done_] { done->store(true); });
    }
    Status Query(bool* done) override {
      if (state_->fail_events) return Status::Internal("an illegal memory access");
      *done = done_->load();
      return {};
    }

   private:
    StatePtr state_;
    std::shared_ptr<std::atomic<bool>> done_ = std::make_shared<std::atomic<bool>>(true);
  };

  class FakeDevice final : public Device {
   public:
    explicit FakeDevice(StatePtr state) : state_(std::move(state)), cpu_(NewCpuDevice()) {}
    Status BindThread() override { return {}; }
    [[nodiscard]] bool asynchronous() const override { return true; }
    Status NewStream(std::unique_ptr<Stream>* out) override {
      *out = std::make_unique<FakeStream>(state_);
      return {};
    }
    Status NewEvent(std::unique_ptr<Event>* out) override {
      *out = std::make_unique<FakeEvent>(state_);
      return {};
    }
    Status NewPinnedBuffer(size_t bytes, std::unique_ptr<PinnedBuffer>* out) override {
      return cpu_->NewPinnedBuffer(bytes, out);
    }

   private:
    StatePtr state_;
    std::unique_ptr<Device> cpu_;
  };

  class FakeGraph final : public Executable {
   public:
    FakeGraph(StatePtr state, std::unique_ptr<Executable> model)
        : state_(std::move(state)), model_(std::move(model)) {}
    Status Launch(const StepKey& key, Stream& stream) override {
      if (state_->fail_launches) return Status::Internal("the launch was refused");
      ++state_->num_launches;
      return Enqueue(*state_, [this, key, &stream] { (void)model_->Launch(key, stream); });
    }

   private:
    StatePtr state_;
    std::unique_ptr<Executable> model_;
  };

  StatePtr state_ = std::make_shared<State>();
};

}  // namespace dlcore::testing

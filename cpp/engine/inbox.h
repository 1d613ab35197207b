#pragma once

#include <atomic>
#include <mutex>
#include <utility>
#include <variant>
#include <vector>

#include "dlcore/request.h"

namespace dlcore {

// What callers ask of the loop, in the order they asked: an abort never
// overtakes its own request. The loop pays one atomic load while it is empty.
// Thread safety: Push by any thread, Drain by the loop alone.
class Inbox {
 public:
  using Item = std::variant<Request, RequestId>;  // submit, abort

  void Push(Item item) {
    const std::lock_guard lock(mutex_);
    items_.push_back(std::move(item));
    waiting_.store(true, std::memory_order_release);
  }

  // Everything pushed so far; the reference is valid until the next Drain.
  std::vector<Item>& Drain() {
    drained_.clear();
    if (!waiting_.load(std::memory_order_acquire)) return drained_;
    const std::lock_guard lock(mutex_);
    waiting_.store(false, std::memory_order_relaxed);
    items_.swap(drained_);
    return drained_;
  }

 private:
  std::atomic<bool> waiting_{false};
  std::mutex mutex_;
  std::vector<Item> items_;
  std::vector<Item> drained_;
};

}  // namespace dlcore

#include "engine/polled_constraint.h"

#include <algorithm>
#include <utility>

namespace dlcore {

void ConstraintQueue::Push(Update update) {
  const std::lock_guard lock(mutex_);
  updates_.push_back(std::move(update));
  if (updates_.size() == 1) event_.Signal();
}

std::vector<ConstraintQueue::Update> ConstraintQueue::Poll(double timeout_s) {
  std::vector<Update> taken;
  if (!event_.Wait(std::max(timeout_s, 0.0))) return taken;
  const std::lock_guard lock(mutex_);
  taken.swap(updates_);
  event_.Drain();
  return taken;
}

PolledConstraint::PolledConstraint(std::shared_ptr<ConstraintQueue> queue, uint64_t key,
                                   int32_t vocab_size)
    : queue_(std::move(queue)), key_(key), mask_(static_cast<size_t>((vocab_size + 31) / 32), 0) {}

bool PolledConstraint::SetMask(int64_t num_tokens_seen, std::span<const uint32_t> mask,
                               bool finished) {
  std::function<void()> wake;
  {
    const std::lock_guard lock(mutex_);
    if (num_tokens_seen != num_tokens_.load() || ready_.load()) return false;
    std::copy(mask.begin(), mask.end(), mask_.begin());
    finished_ = finished;
    ready_.store(true, std::memory_order_release);
    wake = wake_;
  }
  if (wake) wake();
  return true;
}

void PolledConstraint::SetWake(std::function<void()> wake) {
  const std::lock_guard lock(mutex_);
  wake_ = std::move(wake);
}

void PolledConstraint::Advance(std::span<const TokenId> tokens) {
  if (tokens.empty()) return;
  ConstraintQueue::Update update;
  {
    const std::lock_guard lock(mutex_);
    ready_.store(false);
    num_tokens_.fetch_add(static_cast<int64_t>(tokens.size()));
    update = {key_, num_tokens_.load(), {tokens.begin(), tokens.end()}};
  }
  queue_->Push(std::move(update));
}

}  // namespace dlcore

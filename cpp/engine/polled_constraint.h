#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/event_fd.h"
#include "dlcore/request.h"

namespace dlcore {

// Generated tokens of constrained sequences on their way to whoever computes
// masks: one queue for many constraints, with a descriptor to wait on.
// Thread safety: any thread.
class ConstraintQueue {
 public:
  struct Update {
    uint64_t key = 0;             // the constraint's
    int64_t num_tokens_seen = 0;  // after `tokens`; the mask wanted next
    std::vector<TokenId> tokens;  // new since the constraint's last update
  };

  void Push(Update update);
  // Waits up to `timeout_s` and takes all there are; empty on timeout.
  std::vector<Update> Poll(double timeout_s);
  [[nodiscard]] int fd() const { return event_.fd(); }

 private:
  std::mutex mutex_;
  std::vector<Update> updates_;
  EventFd event_;
};

// A TokenConstraint whose masks come from another thread (a grammar engine in
// Python): Advance announces the tokens on a queue, SetMask answers. Until the
// answer the sequence is not planned and no other one waits.
// Thread safety: the TokenConstraint interface by the engine thread, the rest
// by any thread.
class PolledConstraint final : public TokenConstraint {
 public:
  PolledConstraint(std::shared_ptr<ConstraintQueue> queue, uint64_t key, int32_t vocab_size);

  // The mask that follows the first `num_tokens_seen` generated tokens (0 = the
  // first token's). False, and ignored, when it is not the mask waited for.
  // REQUIRES: mask.size() == mask_words()
  bool SetMask(int64_t num_tokens_seen, std::span<const uint32_t> mask, bool finished);
  // Called (by SetMask) when the engine should look again.
  void SetWake(std::function<void()> wake);

  [[nodiscard]] int32_t mask_words() const { return static_cast<int32_t>(mask_.size()); }
  [[nodiscard]] int64_t num_tokens_seen() const { return num_tokens_.load(); }

  void Advance(std::span<const TokenId> tokens) override;
  [[nodiscard]] bool Ready() const override { return ready_.load(std::memory_order_acquire); }
  [[nodiscard]] std::span<const uint32_t> Mask() const override { return mask_; }
  [[nodiscard]] bool Finished() const override { return finished_; }

 private:
  std::shared_ptr<ConstraintQueue> queue_;
  uint64_t key_;
  std::mutex mutex_;            // orders Advance, SetMask and SetWake
  std::function<void()> wake_;  // guarded by mutex_
  std::atomic<int64_t> num_tokens_{0};
  // Written under mutex_ while ready_ is false, read by the engine while it is true.
  std::vector<uint32_t> mask_;
  bool finished_ = false;
  std::atomic<bool> ready_{false};
};

}  // namespace dlcore

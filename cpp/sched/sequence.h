#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "dlcore/options.h"
#include "dlcore/request.h"
#include "dlcore/types.h"
#include "kv/kv_manager.h"
#include "kv/token_view.h"

namespace dlcore {

// kWaiting -> kRunning             admitted: has a slot and blocks
// kWaiting -> kMigrating           admitted, and its KV is being pulled into its blocks
// kMigrating -> kRunning           the KV is there
// kMigrating -> kPreempting        the pull failed: computed here instead
// kRunning -> kPreempting          chosen as victim; planned no more
// kPreempting -> kWaiting          no plan in flight: blocks and slot are back
// any -> kFinished                 destroyed once no plan in flight and no pull writes its blocks
enum class SequenceState : uint8_t { kWaiting, kMigrating, kRunning, kPreempting, kFinished };

// One request on its way: its tokens, how far they are computed, and what it
// holds. Tokens sampled by plans in flight are *pending*: they count, but their
// values are known only at commit.
// Thread safety: engine thread only.
class Sequence {
 public:
  Sequence(Request request, uint64_t arrival, const EngineOptions& options);

  [[nodiscard]] RequestId id() const { return request_.id; }
  [[nodiscard]] int32_t priority() const { return request_.priority; }
  [[nodiscard]] uint64_t arrival() const { return arrival_; }
  // Seconds since it was made.
  [[nodiscard]] double age() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - made_).count();
  }
  [[nodiscard]] const std::string& cache_salt() const { return request_.cache_salt; }
  [[nodiscard]] const SamplingParams& sampling() const { return request_.sampling; }
  [[nodiscard]] TokenConstraint* constraint() const { return request_.constraint.get(); }
  // Where its KV can be pulled from; null when nowhere, or not any more.
  [[nodiscard]] const KvSource* kv_source() const {
    return request_.kv_source ? &*request_.kv_source : nullptr;
  }
  [[nodiscard]] std::optional<KvSource> TakeKvSource() {
    return std::exchange(request_.kv_source, std::nullopt);
  }
  // Its KV is to be put under a lease, and was not yet.
  [[nodiscard]] bool to_lend() const { return request_.hold_kv; }
  // EOS ids (unless ignored) and the request's stop ids.
  [[nodiscard]] const std::vector<TokenId>& stop_ids() const { return stop_ids_; }

  [[nodiscard]] int32_t prompt_len() const { return prompt_len_; }
  [[nodiscard]] int32_t num_output() const { return static_cast<int32_t>(output_.size()); }
  [[nodiscard]] int32_t num_known() const { return prompt_len() + num_output(); }
  [[nodiscard]] TokenView tokens() const { return {request_.prompt, output_}; }
  // REQUIRES: p < num_known()
  [[nodiscard]] TokenId token(int32_t p) const {
    return p < prompt_len() ? request_.prompt[static_cast<size_t>(p)]
                            : output_[static_cast<size_t>(p - prompt_len())];
  }
  // Longest it can get: prompt + max_tokens, within max_model_len.
  [[nodiscard]] int32_t max_total() const { return max_total_; }

  // Most tokens that it may yet be given, those of plans in flight not among them.
  [[nodiscard]] int32_t num_left() const { return max_total_ - num_known() - num_pending_; }

  [[nodiscard]] int32_t num_pending() const { return num_pending_; }
  // Tokens whose KV is written, by committed plans or plans in flight.
  [[nodiscard]] int32_t num_planned() const { return num_planned_; }
  [[nodiscard]] int32_t num_to_plan() const { return num_known() + num_pending_ - num_planned_; }
  // Something may still write its blocks.
  [[nodiscard]] bool in_flight() const { return num_in_flight_ > 0 || pulling; }
  // False while its next token could not be used, or depends on one not yet known.
  [[nodiscard]] bool CanPlan() const {
    return state == SequenceState::kRunning && num_left() > 0 &&
           (num_pending_ == 0 || !waits_for_commit_);
  }

  [[nodiscard]] bool has_penalties() const { return has_penalties_; }
  // The next sampled row must carry the whole token history for penalties.
  [[nodiscard]] bool owes_history() const { return has_penalties_ && !history_sent_; }
  // The least variant that serves a sampled row at output index `index`.
  [[nodiscard]] SamplerVariant VariantAt(int32_t index) const {
    return MasksStopsAt(index) ? SamplerVariant::kFull : variant_;
  }
  // True while min_tokens forbids stopping at output index `index`.
  [[nodiscard]] bool MasksStopsAt(int32_t index) const {
    return index < request_.sampling.min_tokens && !stop_ids_.empty();
  }
  // First prompt position whose logprob was not asked of any plan yet, and the
  // end of such positions; equal when none is wanted.
  [[nodiscard]] int32_t next_prompt_row() const { return next_prompt_row_; }
  [[nodiscard]] int32_t prompt_rows_end() const { return prompt_rows_end_; }

  // Transitions of the progress counters.
  void Admit(SlotId slot, int32_t num_cached);
  void StartPull(SlotId slot);
  void StartLending() {
    request_.hold_kv = false;
    lent = true;
  }
  void FinishPull(int32_t num_pulled);
  void StartFrom(int32_t num_cached) { num_planned_ = num_cached; }
  void Plan(int32_t num_tokens, bool samples, int32_t num_prompt_rows);
  void CommitPlan(bool sampled);
  void ForgetPlans();  // the plans in flight will never be committed
  void AppendOutput(TokenId token) { output_.push_back(token); }
  void ReturnToQueue();

  // Owned by the scheduler.
  SequenceState state = SequenceState::kWaiting;
  bool was_preempted = false;
  bool pulling = false;  // a migration may write its blocks, whatever its state
  bool lent = false;     // others may read its blocks: it is not preempted
  SlotId slot = kNoSlot;
  int32_t num_cached_tokens = -1;  // of the prompt; set at the first admission
  SequenceCache cache;
  // Blocks that equal ones of the prefix cache took the place of while it was lent:
  // readers still know them.
  std::vector<BlockId> replaced;

 private:
  // What every step reads lies together, above and here: with a thousand
  // sequences a step costs what its cache lines cost.
  bool has_penalties_;
  bool history_sent_ = false;
  bool waits_for_commit_;
  SamplerVariant variant_;
  int32_t prompt_len_;
  int32_t max_total_;
  int32_t num_pending_ = 0;
  int32_t num_planned_ = 0;
  int32_t num_in_flight_ = 0;
  int32_t next_prompt_row_ = 0;
  int32_t prompt_rows_end_ = 0;
  std::vector<TokenId> output_;
  std::vector<TokenId> stop_ids_;
  Request request_;
  uint64_t arrival_;
  std::chrono::steady_clock::time_point made_ = std::chrono::steady_clock::now();
};

}  // namespace dlcore

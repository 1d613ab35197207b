#include "engine/output_queue.h"

#include <chrono>
#include <iterator>
#include <utility>
#include <vector>

namespace dlcore {
namespace {

template <class T>
void MoveAppend(std::vector<T>* to, std::vector<T>* from) {
  to->insert(to->end(), std::make_move_iterator(from->begin()),
             std::make_move_iterator(from->end()));
}

}  // namespace

Status OutputQueue::Open(RequestId id, size_t max_live) {
  const std::lock_guard lock(mutex_);
  if (closed_) return Status::Unavailable(closed_message_);
  if (live_.contains(id)) {
    return Status::InvalidArgument("request_id " + std::to_string(id.value) + " is in use");
  }
  if (live_.size() >= max_live) {
    return Status::ResourceExhausted("max_waiting_requests is reached; try again later");
  }
  live_.insert(id);
  num_live_.store(live_.size(), std::memory_order_relaxed);
  return {};
}

void OutputQueue::Push(OutputBatch* batch) {
  if (batch->outputs.empty()) return;
  const std::lock_guard lock(mutex_);
  if (!closed_) {
    for (const SequenceOutput& row : batch->outputs) {
      if (row.finish_reason != FinishReason::kNone) live_.erase(row.id);
    }
    num_live_.store(live_.size(), std::memory_order_relaxed);
    const bool was_empty = pending_.outputs.empty();
    if (was_empty) {
      std::swap(pending_.outputs, batch->outputs);
      indexed_ = false;
    } else {
      for (SequenceOutput& row : batch->outputs) Merge(std::move(row));
    }
    Announce(was_empty);
  }
  batch->outputs.clear();
}

void OutputQueue::Append(SequenceOutput row) {
  index_.Insert(row.id, pending_.outputs.size());
  pending_.outputs.push_back(std::move(row));
}

void OutputQueue::Merge(SequenceOutput row) {
  if (!indexed_) {
    index_.Clear();
    indexed_ = true;
    std::vector<SequenceOutput> rows;
    rows.swap(pending_.outputs);
    // One request may have two rows in a batch (a token, then its abort).
    for (SequenceOutput& earlier : rows) Merge(std::move(earlier));
  }
  const size_t found = index_.Find(row.id);
  if (found == RowIndex::kNone) return Append(std::move(row));
  SequenceOutput& into = pending_.outputs[found];
  into.tokens.append(row.tokens);
  MoveAppend(&into.logprobs, &row.logprobs);
  MoveAppend(&into.prompt_logprobs, &row.prompt_logprobs);
  into.finish_reason = row.finish_reason;
  into.stop_token = row.stop_token;
  into.num_cached_tokens = row.num_cached_tokens;
  into.error = std::move(row.error);
  if (row.kv_lease) into.kv_lease = row.kv_lease;
}

void OutputQueue::Close(FinishReason reason, std::string_view message) {
  const std::lock_guard lock(mutex_);
  if (closed_) return;
  const bool was_empty = pending_.outputs.empty();
  for (const RequestId id : live_) {
    SequenceOutput last;
    last.id = id;
    last.finish_reason = reason;
    if (reason == FinishReason::kError) last.error = message;
    Merge(std::move(last));
  }
  live_.clear();
  num_live_.store(0, std::memory_order_relaxed);
  closed_message_ = message;
  closed_ = true;
  // Also wakes readers that wait for nothing: Poll then says it is over.
  Announce(was_empty);
}

void OutputQueue::Announce(bool was_empty) {
  if (was_empty) event_.Signal();
}

bool OutputQueue::Poll(double timeout_s, OutputBatch* out) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  out->outputs.clear();
  double left = timeout_s;
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      if (!pending_.outputs.empty()) {
        std::swap(out->outputs, pending_.outputs);
        indexed_ = false;
        if (!closed_) event_.Drain();  // else the next reader learns that it is over
        return true;
      }
      if (closed_) {
        event_.Drain();
        return false;
      }
    }
    if (left < 0 || !event_.Wait(left)) return false;
    left = timeout_s - std::chrono::duration<double>(Clock::now() - start).count();
  }
}

}  // namespace dlcore

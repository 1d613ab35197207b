#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_set>

#include "base/event_fd.h"
#include "dlcore/output.h"
#include "dlcore/status.h"
#include "engine/row_index.h"

namespace dlcore {

// Hands outputs from the loop to its readers, a batch per step. A slow reader
// finds the steps it missed merged into one row per request, so memory is
// bounded by the tokens of live requests. It also knows which requests are
// live, so that all of them can be ended by any thread while the loop is stuck.
// Thread safety: any thread.
class OutputQueue {
 public:
  // A request may now produce outputs. InvalidArgument when the id is live,
  // ResourceExhausted when `max_live` are, Unavailable after Close.
  Status Open(RequestId id, size_t max_live);

  // Takes the batch's rows and leaves it empty. Ignored after Close.
  void Push(OutputBatch* batch);

  // Gives every live request its last row and refuses everything from now on.
  // Idempotent: the first call's reason stands.
  void Close(FinishReason reason, std::string_view message);

  // Waits up to `timeout_s` for outputs and takes all there are. False on
  // timeout, or when closed and empty: then nothing will ever come.
  bool Poll(double timeout_s, OutputBatch* out);

  [[nodiscard]] size_t num_live() const { return num_live_.load(std::memory_order_relaxed); }
  // Readable while outputs wait.
  [[nodiscard]] int fd() const { return event_.fd(); }
  [[nodiscard]] bool valid() const { return event_.valid(); }

 private:
  void Append(SequenceOutput row);
  void Merge(SequenceOutput row);
  void Announce(bool was_empty);

  mutable std::mutex mutex_;
  OutputBatch pending_;
  bool indexed_ = false;  // index_ holds pending_'s rows
  RowIndex index_;
  std::unordered_set<RequestId> live_;
  std::atomic<size_t> num_live_{0};
  bool closed_ = false;
  std::string closed_message_;
  EventFd event_;
};

}  // namespace dlcore

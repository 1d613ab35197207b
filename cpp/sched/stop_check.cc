#include "sched/stop_check.h"

#include <algorithm>

namespace dlcore {

FinishReason CheckStop(const Sequence& sequence) {
  const int32_t index = sequence.num_output() - 1;
  const TokenId last = sequence.token(sequence.num_known() - 1);
  const auto& stop_ids = sequence.stop_ids();
  if (index >= sequence.sampling().min_tokens &&
      std::ranges::find(stop_ids, last) != stop_ids.end()) {
    return FinishReason::kStop;
  }
  return sequence.num_known() >= sequence.max_total() ? FinishReason::kLength : FinishReason::kNone;
}

}  // namespace dlcore

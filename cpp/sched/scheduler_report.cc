#include <string>

#include "base/text.h"
#include "sched/scheduler.h"

namespace dlcore {
namespace {

const char* Name(SequenceState state) {
  switch (state) {
    case SequenceState::kWaiting:
      return "waiting";
    case SequenceState::kMigrating:
      return "migrating";
    case SequenceState::kRunning:
      return "running";
    case SequenceState::kPreempting:
      return "preempting";
    case SequenceState::kFinished:
      return "finished";
  }
  return "?";
}

}  // namespace

bool Scheduler::HasWork() const { return !sequences_.empty() || !plans_.empty(); }

SchedulerStats Scheduler::Stats() const {
  SchedulerStats stats = stats_;
  stats.num_running = static_cast<int32_t>(running_.size());
  stats.num_waiting = static_cast<int32_t>(waiting_.size());
  stats.num_free_blocks = kv_.pool().num_free();
  stats.num_cached_blocks = kv_.pool().num_cached();
  stats.num_referenced_blocks = kv_.pool().num_referenced();
  return stats;
}

std::string Scheduler::DebugString() const {
  Text out;
  const SchedulerStats stats = Stats();
  out << "running " << stats.num_running << ", waiting " << stats.num_waiting << ", migrating "
      << stats.num_migrating << ", lent " << stats.num_lent << ", uncommitted plans "
      << plans_.size() << ", blocks free " << stats.num_free_blocks << " cached "
      << stats.num_cached_blocks << " referenced " << stats.num_referenced_blocks << " total "
      << stats.num_kv_blocks << ", preemptions " << stats.num_preemptions << "\n";
  const auto line = [&out](const Sequence& s) {
    out << "request " << s.id().value << " " << Name(s.state) << " priority " << s.priority()
        << " slot " << s.slot.value << " prompt " << s.prompt_len() << " output " << s.num_output()
        << " planned " << s.num_planned() << " pending " << s.num_pending() << " blocks "
        << s.cache.table.size() << "\n";
  };
  for (const Sequence* sequence : running_) line(*sequence);
  for (const Sequence* sequence : waiting_) line(*sequence);
  return out.str();
}

}  // namespace dlcore

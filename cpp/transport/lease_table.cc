#include "transport/lease_table.h"

#include <algorithm>
#include <random>
#include <string>
#include <utility>

#include "base/check.h"
#include "transport/pool_memory.h"

namespace dlcore {
namespace {

uint64_t RandomEpoch() {
  std::random_device source;
  return uint64_t{source()} << 32 | source();
}

}  // namespace

LeaseTable::LeaseTable(KvLayout layout, Options options, OnReturn on_return)
    : layout_(std::move(layout)),
      options_(std::move(options)),
      on_return_(std::move(on_return)),
      next_epoch_(options_.first_epoch != 0 ? options_.first_epoch : RandomEpoch()) {}

Status LeaseTable::CheckBlocks(const LeaseBlocks& blocks) const {
  if (blocks.size() != layout_.groups.size()) {
    return Status::InvalidArgument("blocks: one table per cache group needed");
  }
  size_t total = 0;
  for (const auto& table : blocks) total += table.size();
  if (total > kMaxLeaseBlocks) {
    return Status::InvalidArgument("a lease holds at most " + std::to_string(kMaxLeaseBlocks) +
                                   " blocks; use a larger block_size");
  }
  for (size_t g = 0; g < blocks.size(); ++g) {
    for (const BlockId block : blocks[g]) {
      if (block.value >= 0 && block.value < layout_.groups[g].num_blocks) continue;
      return Status::InvalidArgument("block " + std::to_string(block.value) +
                                     " is outside its pool");
    }
  }
  return Status::Ok();
}

std::vector<LeaseTable::Run> LeaseTable::MakeRuns(std::vector<BlockId> blocks) {
  std::sort(blocks.begin(), blocks.end());
  std::vector<Run> runs;
  for (const BlockId block : blocks) {
    if (!runs.empty() && block.value <= runs.back().last + 1) {
      runs.back().last = block.value;
    } else {
      runs.push_back({block.value, block.value});
    }
  }
  return runs;
}

std::vector<LeaseTable::Run> LeaseTable::MergeRuns(const std::vector<Run>& a,
                                                   const std::vector<Run>& b) {
  std::vector<Run> sorted(a.size() + b.size());
  std::merge(a.begin(), a.end(), b.begin(), b.end(), sorted.begin(),
             [](const Run& x, const Run& y) { return x.first < y.first; });
  std::vector<Run> runs;
  for (const Run& run : sorted) {
    if (!runs.empty() && run.first <= runs.back().last + 1) {
      runs.back().last = std::max(runs.back().last, run.last);
    } else {
      runs.push_back(run);
    }
  }
  return runs;
}

Status LeaseTable::Create(LeaseBlocks blocks, int32_t num_tokens, LeaseRef* out) {
  if (Status s = CheckBlocks(blocks); !s.ok()) return s;
  std::vector<std::vector<Run>> runs;
  for (const auto& table : blocks) runs.push_back(MakeRuns(table));
  const size_t num_groups = blocks.size();
  const std::lock_guard lock(mutex_);
  if (free_ids_.empty()) {
    free_ids_.push_back(entries_.size());
    entries_.emplace_back();
  }
  const uint64_t id = free_ids_.back();
  free_ids_.pop_back();
  Entry& entry = entries_[id];
  entry = {.epoch = next_epoch_++,
           .state = LeaseState::kFilling,
           .num_tokens = num_tokens,
           .done = {},
           .expiry = options_.clock() + options_.ttl,
           .blocks = std::move(blocks),
           .runs = std::move(runs),
           .done_runs = std::vector<std::vector<Run>>(num_groups),
           .done_blocks = std::vector<size_t>(num_groups)};
  *out = {id, entry.epoch};
  ++counters_.granted;
  return Status::Ok();
}

Status LeaseTable::Find(LeaseRef lease, size_t* index) const {
  if (lease.id >= entries_.size()) return Status::PermissionDenied("no such lease");
  const Entry& entry = entries_[lease.id];
  if (entry.epoch != lease.epoch) return Status::PermissionDenied("wrong lease epoch");
  if (IsTerminal(entry.state)) {
    return Status::PermissionDenied("lease " + std::string(Name(entry.state)));
  }
  *index = lease.id;
  return Status::Ok();
}

Status LeaseTable::Apply(size_t index, LeaseAction action, std::vector<Returned>* returned) {
  Entry& entry = entries_[index];
  const std::optional<LeaseState> next = Next(entry.state, action);
  if (!next) return Status::PermissionDenied("lease " + std::string(Name(entry.state)));
  entry.state = *next;
  if (IsTerminal(*next)) {
    returned->push_back({{index, entry.epoch}, std::exchange(entry.blocks, {})});
    free_ids_.push_back(index);
  }
  return Status::Ok();
}

void LeaseTable::Notify(std::vector<Returned> returned) {
  for (Returned& r : returned) on_return_(r.lease, std::move(r.blocks));
  const std::lock_guard lock(listener_mutex_);
  for (const auto& [token, listener] : listeners_) listener();
}

Status LeaseTable::MarkLayersDone(LeaseRef lease, int32_t layers_done) {
  {
    const std::lock_guard lock(mutex_);
    size_t index = 0;
    if (Status s = Find(lease, &index); !s.ok()) return s;
    const LeaseProgress done = entries_[index].done;
    if (layers_done <= done.layers || layers_done > num_layers()) {
      return Status::InvalidArgument("layers_done must grow, up to the number of layers");
    }
    if (Status s = Advance(index, {done.tokens, layers_done}); !s.ok()) return s;
  }
  Notify({});
  return Status::Ok();
}

Status LeaseTable::MarkTokensDone(LeaseRef lease, int32_t tokens_done) {
  {
    const std::lock_guard lock(mutex_);
    size_t index = 0;
    if (Status s = Find(lease, &index); !s.ok()) return s;
    const Entry& entry = entries_[index];
    if (tokens_done <= entry.done.tokens || tokens_done > entry.num_tokens) {
      return Status::InvalidArgument("tokens_done must grow, up to the number of tokens");
    }
    if (Status s = Advance(index, {tokens_done, entry.done.layers}); !s.ok()) return s;
  }
  Notify({});
  return Status::Ok();
}

Status LeaseTable::Advance(size_t index, LeaseProgress done) {
  Entry& entry = entries_[index];
  entry.expiry = options_.clock() + options_.ttl;
  const bool filled = done.tokens == entry.num_tokens || done.layers == num_layers();
  entry.done = filled ? LeaseProgress{entry.num_tokens, num_layers()} : done;
  if (filled) return Apply(index, LeaseAction::kFill, nullptr);
  AddDoneBlocks(&entry);
  return Status::Ok();
}

// The last block, if it is not full, is done with the whole lease only.
void LeaseTable::AddDoneBlocks(Entry* entry) const {
  for (size_t g = 0; g < layout_.groups.size(); ++g) {
    const std::vector<BlockId>& table = entry->blocks[g];
    const auto full = static_cast<size_t>(entry->done.tokens / layout_.groups[g].block_size);
    const size_t end = std::min(full, table.size());
    size_t& first = entry->done_blocks[g];
    if (end <= first) continue;
    const auto begin = table.begin() + static_cast<std::ptrdiff_t>(first);
    const auto last = table.begin() + static_cast<std::ptrdiff_t>(end);
    entry->done_runs[g] =
        MergeRuns(entry->done_runs[g], MakeRuns(std::vector<BlockId>(begin, last)));
    first = end;
  }
}

Status LeaseTable::Release(LeaseRef lease) { return End(lease, &LeaseCounters::released); }

Status LeaseTable::Abort(LeaseRef lease) { return End(lease, &LeaseCounters::aborted); }

Status LeaseTable::End(LeaseRef lease, uint64_t LeaseCounters::*counter) {
  std::vector<Returned> returned;
  {
    const std::lock_guard lock(mutex_);
    size_t index = 0;
    if (Status s = Find(lease, &index); !s.ok()) return s;
    if (Status s = Apply(index, LeaseAction::kRelease, &returned); !s.ok()) return s;
    ++(counters_.*counter);
  }
  Notify(std::move(returned));
  return Status::Ok();
}

int32_t LeaseTable::Expire() {
  std::vector<Returned> returned;
  int32_t ended = 0;
  {
    const std::lock_guard lock(mutex_);
    const TimePoint now = options_.clock();
    for (size_t i = 0; i < entries_.size(); ++i) {
      const Entry& entry = entries_[i];
      if (entry.expiry > now || !Next(entry.state, LeaseAction::kExpire)) continue;
      if (Apply(i, LeaseAction::kExpire, &returned).ok()) ++ended;
    }
    counters_.expired += static_cast<uint64_t>(ended);
  }
  if (ended > 0) Notify(std::move(returned));
  return ended;
}

Status LeaseTable::Refuse(LeaseRefusal reason, std::string message) {
  ++counters_.refused[static_cast<size_t>(reason)];
  return Status::PermissionDenied(std::move(message));
}

Status LeaseTable::FindForReader(LeaseRef lease, size_t* index) {
  if (Status s = Find(lease, index); !s.ok()) {
    const bool known = lease.id < entries_.size() && entries_[lease.id].epoch == lease.epoch;
    return Refuse(known ? LeaseRefusal::kEnded : LeaseRefusal::kUnknown, s.message());
  }
  return Status::Ok();
}

void LeaseTable::CountRefusal(LeaseRefusal reason) {
  const std::lock_guard lock(mutex_);
  ++counters_.refused[static_cast<size_t>(reason)];
}

Status LeaseTable::Describe(LeaseRef lease, LeaseProgress at_least, LeaseInfo* out) {
  const std::lock_guard lock(mutex_);
  size_t index = 0;
  if (Status s = FindForReader(lease, &index); !s.ok()) return s;
  const Entry& entry = entries_[index];
  if (entry.done.layers < std::min(at_least.layers, num_layers()) &&
      entry.done.tokens < std::min(at_least.tokens, entry.num_tokens)) {
    return Status::ResourceExhausted("not written yet");
  }
  *out = {layout_, entry.blocks, entry.num_tokens, entry.done};
  for (KvLayer& layer : out->layout.layers) layer.base = 0;
  return Status::Ok();
}

bool LeaseTable::Covers(const std::vector<Run>& runs, uint64_t block_bytes,
                        const LayerRange& range) const {
  // Division first: no sum of two numbers from the wire is formed before both
  // are known to be small.
  const uint64_t first = range.offset / block_bytes;
  if (range.length == 0 || first > INT32_MAX) return false;
  const auto run = std::upper_bound(
      runs.begin(), runs.end(), first,
      [](uint64_t block, const Run& r) { return block < static_cast<uint64_t>(r.first); });
  if (run == runs.begin()) return false;
  const uint64_t end = (static_cast<uint64_t>(std::prev(run)->last) + 1) * block_bytes;
  return range.offset < end && range.length <= end - range.offset;
}

Status LeaseTable::BeginRead(LeaseRef lease, int32_t layer, std::span<const LayerRange> ranges,
                             std::vector<MemoryRange>* out) {
  const std::lock_guard lock(mutex_);
  if (layer < 0 || layer >= num_layers()) {
    return Refuse(LeaseRefusal::kOutside, "layer " + std::to_string(layer) + " does not exist");
  }
  const KvLayer& target = layout_.layers[static_cast<size_t>(layer)];
  const auto group = static_cast<size_t>(target.group);
  const uint64_t block_bytes = layout_.bytes_per_block(target.group);
  size_t index = 0;
  if (Status s = FindForReader(lease, &index); !s.ok()) return s;
  Entry& entry = entries_[index];
  if (!IsReading(entry.state) && !Next(entry.state, LeaseAction::kFirstRead)) {
    return Refuse(LeaseRefusal::kEnded, "lease " + std::string(Name(entry.state)));
  }
  out->clear();
  bool written = true;
  for (const LayerRange& range : ranges) {
    if (!Covers(entry.runs[group], block_bytes, range)) {
      return Refuse(LeaseRefusal::kOutside, "range outside the leased blocks");
    }
    written = written &&
              (layer < entry.done.layers || Covers(entry.done_runs[group], block_bytes, range));
    out->push_back({target.base + range.offset, range.length});
  }
  if (!written) {
    return Status::ResourceExhausted("layer " + std::to_string(layer) + " is not written yet");
  }
  const uint64_t bytes = TotalBytes(*out);
  counters_.bytes += bytes;
  if (IsFilling(entry.state)) counters_.early_bytes += bytes;
  if (!IsReading(entry.state)) {
    if (Status s = Apply(index, LeaseAction::kFirstRead, nullptr); !s.ok()) return s;
  }
  ++entry.num_readers;
  return Status::Ok();
}

void LeaseTable::EndRead(LeaseRef lease) {
  std::vector<Returned> returned;
  {
    const std::lock_guard lock(mutex_);
    size_t index = 0;
    DLCORE_CHECK(Find(lease, &index).ok()) << "EndRead without BeginRead";
    if (--entries_[index].num_readers > 0) return;
    const Status s = Apply(index, LeaseAction::kLastRead, &returned);
    DLCORE_CHECK(s.ok()) << s.message();
  }
  if (!returned.empty()) Notify(std::move(returned));
}

int32_t LeaseTable::AddListener(std::function<void()> listener) {
  const std::lock_guard lock(listener_mutex_);
  listeners_.emplace_back(next_listener_, std::move(listener));
  return next_listener_++;
}

void LeaseTable::RemoveListener(int32_t token) {
  const std::lock_guard lock(listener_mutex_);
  std::erase_if(listeners_, [token](const auto& entry) { return entry.first == token; });
}

LeaseCounters LeaseTable::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

int32_t LeaseTable::num_live() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int32_t>(entries_.size() - free_ids_.size());
}

}  // namespace dlcore

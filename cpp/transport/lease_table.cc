#include "transport/lease_table.h"

#include <algorithm>
#include <random>
#include <string>
#include <utility>

#include "base/check.h"

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

Status LeaseTable::Create(LeaseBlocks blocks, int32_t num_tokens, LeaseRef* out) {
  if (Status s = CheckBlocks(blocks); !s.ok()) return s;
  std::vector<std::vector<Run>> runs;
  for (const auto& table : blocks) runs.push_back(MakeRuns(table));
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
           .expiry = options_.clock() + options_.ttl,
           .blocks = std::move(blocks),
           .runs = std::move(runs)};
  *out = {id, entry.epoch};
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
    Entry& entry = entries_[index];
    const int32_t num_layers = static_cast<int32_t>(layout_.layers.size());
    if (layers_done <= entry.layers_done || layers_done > num_layers) {
      return Status::InvalidArgument("layers_done must grow, up to the number of layers");
    }
    entry.layers_done = layers_done;
    entry.expiry = options_.clock() + options_.ttl;
    if (layers_done == num_layers) {
      if (Status s = Apply(index, LeaseAction::kFill, nullptr); !s.ok()) return s;
    }
  }
  Notify({});
  return Status::Ok();
}

Status LeaseTable::Release(LeaseRef lease) {
  std::vector<Returned> returned;
  {
    const std::lock_guard lock(mutex_);
    size_t index = 0;
    if (Status s = Find(lease, &index); !s.ok()) return s;
    if (Status s = Apply(index, LeaseAction::kRelease, &returned); !s.ok()) return s;
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
  }
  if (ended > 0) Notify(std::move(returned));
  return ended;
}

Status LeaseTable::Describe(LeaseRef lease, int32_t min_layers, LeaseInfo* out) const {
  const std::lock_guard lock(mutex_);
  size_t index = 0;
  if (Status s = Find(lease, &index); !s.ok()) return s;
  const Entry& entry = entries_[index];
  const int32_t num_layers = static_cast<int32_t>(layout_.layers.size());
  if (entry.layers_done < std::min(min_layers, num_layers)) {
    return Status::ResourceExhausted("layers are not written yet");
  }
  *out = {layout_, entry.blocks, entry.num_tokens, entry.layers_done};
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
  if (layer < 0 || static_cast<size_t>(layer) >= layout_.layers.size()) {
    return Status::PermissionDenied("layer " + std::to_string(layer) + " does not exist");
  }
  const KvLayer& target = layout_.layers[static_cast<size_t>(layer)];
  const uint64_t block_bytes = layout_.bytes_per_block(target.group);
  const std::lock_guard lock(mutex_);
  size_t index = 0;
  if (Status s = Find(lease, &index); !s.ok()) return s;
  Entry& entry = entries_[index];
  if (!IsReading(entry.state) && !Next(entry.state, LeaseAction::kFirstRead)) {
    return Status::PermissionDenied("lease " + std::string(Name(entry.state)));
  }
  out->clear();
  for (const LayerRange& range : ranges) {
    if (!Covers(entry.runs[static_cast<size_t>(target.group)], block_bytes, range)) {
      return Status::PermissionDenied("range outside the leased blocks");
    }
    out->push_back({target.base + range.offset, range.length});
  }
  if (layer >= entry.layers_done) {
    return Status::ResourceExhausted("layer " + std::to_string(layer) + " is not written yet");
  }
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

int32_t LeaseTable::num_live() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int32_t>(entries_.size() - free_ids_.size());
}

}  // namespace dlcore

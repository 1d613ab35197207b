#include "transport/kv_migration.h"

#include <algorithm>
#include <utility>

namespace dlcore {

KvMigration::KvMigration(uint64_t serial, MigrationRequest request, const KvLayout& layout,
                         int32_t layers_in_flight)
    : serial_(serial),
      request_(std::move(request)),
      layout_(layout),
      layers_in_flight_(layers_in_flight),
      sources_(request_.sources.size()) {
  const std::vector<int32_t> ranks =
      SourceRanks(layout_, static_cast<int32_t>(request_.sources.size()));
  for (size_t i = 0; i < sources_.size(); ++i) {
    sources_[i].needed = std::binary_search(ranks.begin(), ranks.end(), static_cast<int32_t>(i));
    sources_[i].round_end = request_.first_token;
    sources_[i].next_layer = num_layers();
  }
  if (sources_.empty()) status_ = Status::InvalidArgument("sources: a migration needs one");
  if (request_.local_blocks.size() != layout_.groups.size()) {
    status_ = Status::InvalidArgument("local_blocks: one table per cache group needed");
  }
}

void KvMigration::Fail(Status status) {
  if (status_.ok()) status_ = std::move(status);
}

void KvMigration::Abort() {
  aborted_ = status_.ok();
  Fail(Status::Unavailable("aborted"));
}

bool KvMigration::Finished(const Source& source) const {
  if (!source.needed) return true;
  return source.round_end >= request_.num_tokens && source.next_layer == num_layers();
}

bool KvMigration::done() const {
  return std::all_of(sources_.begin(), sources_.end(), [&](const Source& source) {
    if (source.in_flight > 0 || source.opening) return false;
    return !status_.ok() || Finished(source);
  });
}

bool KvMigration::Written(const Source& source) const {
  return source.lease.done.layers == num_layers() || ReadyTokens(source) >= request_.num_tokens;
}

int32_t KvMigration::ReadyTokens(const Source& source) const {
  const int32_t tokens = source.lease.done.tokens;
  if (tokens == source.lease.num_tokens) return request_.num_tokens;
  int32_t ready = tokens;
  for (const KvGroup& group : source.lease.layout.groups) {
    ready = std::min(ready, tokens / group.block_size * group.block_size);
  }
  return std::min(ready, request_.num_tokens);
}

std::vector<MigrationStep> KvMigration::TakeSteps() {
  std::vector<MigrationStep> steps;
  for (size_t i = 0; i < sources_.size() && status_.ok(); ++i) {
    Source& source = sources_[i];
    if (!source.needed) continue;
    TakeReads(i, &steps);
    if (source.opening || !status_.ok() || Finished(source)) continue;
    if (source.planned && Written(source)) continue;
    source.opening = true;
    MigrationStep open{MigrationStep::Kind::kOpenLease, i, {}, 0, {}};
    // The first answer comes at once, so that the rest can be prepared.
    const LeaseProgress done = source.lease.done;
    if (source.planned) open.at_least = {done.tokens + 1, done.layers + 1};
    steps.push_back(std::move(open));
  }
  return steps;
}

void KvMigration::TakeReads(size_t index, std::vector<MigrationStep>* out) {
  Source& source = sources_[index];
  const bool early = !Written(source);
  while (source.in_flight < layers_in_flight_ && HasLayer(index)) {
    const int32_t layer = source.next_layer++;
    std::vector<ReadRange> ranges = LayerRanges(source, layer);
    if (ranges.empty()) continue;  // another rank serves this group
    for (const ReadRange& range : ranges) {
      bytes_ += range.length;
      if (early) early_bytes_ += range.length;
    }
    ++source.in_flight;
    out->push_back({MigrationStep::Kind::kRead, index, {}, layer, std::move(ranges)});
  }
}

bool KvMigration::HasLayer(size_t index) {
  Source& source = sources_[index];
  if (!source.planned) return false;
  if (source.next_layer == num_layers()) {
    const int32_t ready = ReadyTokens(source);
    const bool by_layers = ready <= source.round_end && source.lease.done.layers > 0;
    const int32_t end = by_layers ? request_.num_tokens : ready;
    if (end <= source.round_end) return false;
    if (Status s = PlanRound(&source, end); !s.ok()) {
      Fail(std::move(s));
      return false;
    }
  }
  const bool all = ReadyTokens(source) >= source.round_end;
  return source.next_layer < (all ? num_layers() : source.lease.done.layers);
}

Status KvMigration::PlanRound(Source* source, int32_t end) {
  source->plans.resize(layout_.groups.size());
  for (size_t g = 0; g < source->plans.size(); ++g) {
    const CopySpec spec{static_cast<int32_t>(g), source->lease.blocks[g], request_.local_blocks[g],
                        source->round_end, end - source->round_end};
    const Status s = BuildCopyPlan(source->lease.layout, layout_, spec, &source->plans[g]);
    if (!s.ok()) return s;
  }
  source->round_end = end;
  source->next_layer = 0;
  return Status::Ok();
}

std::vector<ReadRange> KvMigration::LayerRanges(const Source& source, int32_t layer) const {
  const KvLayer& target = layout_.layers[static_cast<size_t>(layer)];
  std::vector<ReadRange> ranges;
  for (const CopyRange& range : source.plans[static_cast<size_t>(target.group)]) {
    ranges.push_back({range.remote_offset, target.base + range.local_offset, range.length});
  }
  return ranges;
}

void KvMigration::OnEvent(size_t index, TransportEvent event) {
  Source& source = sources_[index];
  const bool opened = event.kind == TransportEvent::Kind::kLeaseOpened;
  if (opened) {
    source.opening = false;
  } else {
    --source.in_flight;
  }
  if (!event.status.ok()) return Fail(std::move(event.status));
  if (!opened || !status_.ok()) return;
  if (source.planned) {
    source.lease.done = event.lease.done;
    return;
  }
  if (Status s = CheckInfo(index, event.lease); !s.ok()) return Fail(std::move(s));
  source.lease = std::move(event.lease);
  source.planned = true;
}

Status KvMigration::CheckInfo(size_t index, const LeaseInfo& info) const {
  if (info.layout.tp_size != static_cast<int32_t>(sources_.size()) ||
      info.layout.tp_rank != static_cast<int32_t>(index)) {
    return Status::InvalidArgument("sources: must be the owner's TP ranks in order");
  }
  if (info.num_tokens < request_.num_tokens) {
    return Status::InvalidArgument("the lease holds " + std::to_string(info.num_tokens) +
                                   " tokens, " + std::to_string(request_.num_tokens) + " wanted");
  }
  const bool same_model = std::equal(
      info.layout.layers.begin(), info.layout.layers.end(), layout_.layers.begin(),
      layout_.layers.end(), [](const KvLayer& a, const KvLayer& b) { return a.group == b.group; });
  if (!same_model || info.layout.groups.size() != layout_.groups.size()) {
    return Status::InvalidArgument("the owner's cache groups or layers differ: another model?");
  }
  return Status::Ok();
}

}  // namespace dlcore

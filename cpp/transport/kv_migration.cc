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
  }
  if (sources_.empty()) status_ = Status::InvalidArgument("sources: a migration needs one");
  if (request_.local_blocks.size() != layout_.groups.size()) {
    status_ = Status::InvalidArgument("local_blocks: one table per cache group needed");
  }
}

void KvMigration::Fail(Status status) {
  if (status_.ok()) status_ = std::move(status);
}

bool KvMigration::done() const {
  return std::all_of(sources_.begin(), sources_.end(), [&](const Source& source) {
    if (source.in_flight > 0 || source.opening) return false;
    return !status_.ok() || !source.needed || source.next_layer == num_layers();
  });
}

std::vector<MigrationStep> KvMigration::TakeSteps() {
  std::vector<MigrationStep> steps;
  for (size_t i = 0; i < sources_.size() && status_.ok(); ++i) {
    Source& source = sources_[i];
    if (!source.needed) continue;
    TakeReads(i, &steps);
    const bool waits = !source.planned || source.layers_done < num_layers();
    if (waits && !source.opening) {
      source.opening = true;
      steps.push_back({MigrationStep::Kind::kOpenLease, i, source.layers_done + 1, {}});
    }
  }
  return steps;
}

void KvMigration::TakeReads(size_t index, std::vector<MigrationStep>* out) {
  Source& source = sources_[index];
  while (source.next_layer < source.layers_done && source.in_flight < layers_in_flight_) {
    const int32_t layer = source.next_layer++;
    std::vector<ReadRange> ranges = LayerRanges(source, layer);
    if (ranges.empty()) continue;  // another rank serves this group
    ++source.in_flight;
    out->push_back({MigrationStep::Kind::kRead, index, layer, std::move(ranges)});
  }
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
  if (!source.planned) {
    if (Status s = Plan(index, event.lease); !s.ok()) return Fail(std::move(s));
  }
  source.layers_done = event.lease.layers_done;
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

Status KvMigration::Plan(size_t index, const LeaseInfo& info) {
  if (Status s = CheckInfo(index, info); !s.ok()) return s;
  Source& source = sources_[index];
  source.plans.resize(layout_.groups.size());
  for (size_t g = 0; g < source.plans.size(); ++g) {
    const CopySpec spec{static_cast<int32_t>(g), info.blocks[g], request_.local_blocks[g],
                        request_.first_token, request_.num_tokens - request_.first_token};
    if (Status s = BuildCopyPlan(info.layout, layout_, spec, &source.plans[g]); !s.ok()) return s;
  }
  source.planned = true;
  for (const KvLayer& layer : layout_.layers) {
    for (const CopyRange& r : source.plans[static_cast<size_t>(layer.group)]) bytes_ += r.length;
  }
  return Status::Ok();
}

}  // namespace dlcore

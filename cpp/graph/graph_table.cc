#include "graph/graph_table.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace dlcore {
namespace {

const char* Name(StepKind kind) {
  switch (kind) {
    case StepKind::kDecode:
      return "decode";
    case StepKind::kMixed:
      return "mixed";
  }
  return "?";
}

const char* Name(SamplerVariant sampler) {
  switch (sampler) {
    case SamplerVariant::kGreedy:
      return "greedy";
    case SamplerVariant::kRandom:
      return "random";
    case SamplerVariant::kFull:
      return "full";
  }
  return "?";
}

bool Covers(const StepKey& key, const StepKey& wanted) {
  return (key.kind == wanted.kind || key.kind == StepKind::kMixed) &&
         key.sampler >= wanted.sampler && key.num_tokens >= wanted.num_tokens &&
         key.num_seqs >= wanted.num_seqs && key.spec_len == wanted.spec_len;
}

// What a step costs: tokens first, then the specialised kernel, then rows of logits.
auto Cost(const StepKey& key) {
  return std::tuple(key.num_tokens, key.kind, key.num_seqs, key.sampler, key.spec_len);
}

Status CheckKey(const StepKey& key) {
  if (key.num_tokens < 1 || key.num_seqs < 1 || key.spec_len < 0) {
    return Status::InvalidArgument("key " + ToString(key) + ": counts must be positive");
  }
  if (key.kind == StepKind::kDecode && key.num_tokens != key.num_seqs * (1 + key.spec_len)) {
    return Status::InvalidArgument("key " + ToString(key) +
                                   ": a decode step has one token (plus drafts) per sequence");
  }
  return {};
}

}  // namespace

std::string ToString(const StepKey& key) {
  return std::string(Name(key.kind)) + "/" + Name(key.sampler) +
         "/tokens=" + std::to_string(key.num_tokens) + "/seqs=" + std::to_string(key.num_seqs) +
         "/spec=" + std::to_string(key.spec_len);
}

Status GraphTable::Add(const StepKey& key, std::unique_ptr<Executable> executable) {
  if (exact_ != nullptr) {
    return Status::InvalidArgument("key: an exact executable is registered already");
  }
  if (Status status = CheckKey(key); !status.ok()) return status;
  const auto place =
      std::lower_bound(entries_.begin(), entries_.end(), key,
                       [](const Entry& e, const StepKey& k) { return Cost(e.key) < Cost(k); });
  if (place != entries_.end() && place->key == key) {
    return Status::InvalidArgument("key " + ToString(key) + " is registered already");
  }
  entries_.insert(place, Entry{key, std::move(executable)});
  return {};
}

Status GraphTable::SetExact(std::unique_ptr<Executable> executable) {
  if (exact_ != nullptr || !entries_.empty()) {
    return Status::InvalidArgument("an executable is registered already");
  }
  exact_ = std::move(executable);
  return {};
}

Status GraphTable::Find(const StepKey& wanted, Selection* out) const {
  if (exact_ != nullptr) {
    *out = {exact_.get(), wanted};
    return {};
  }
  for (const Entry& entry : entries_) {
    if (!Covers(entry.key, wanted)) continue;
    *out = {entry.executable.get(), entry.key};
    return {};
  }
  if (entries_.empty()) return Status::NotFound("no executable is registered");
  return Status::NotFound("no executable covers " + ToString(wanted) + " (" +
                          std::to_string(entries_.size()) + " registered, the largest is " +
                          ToString(entries_.back().key) + ")");
}

}  // namespace dlcore

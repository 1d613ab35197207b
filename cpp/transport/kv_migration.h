#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "dlcore/transport.h"
#include "dlcore/types.h"
#include "transport/copy_plan.h"

namespace dlcore {

// What a migration wants its transport to do next for one source.
struct MigrationStep {
  enum class Kind : uint8_t { kOpenLease, kRead };
  Kind kind = Kind::kRead;
  size_t source = 0;
  LeaseProgress at_least;         // kOpenLease
  int32_t layer = 0;              // kRead
  std::vector<ReadRange> ranges;  // kRead
};

// One sequence's migration as a pure state machine: events in, steps out, no
// thread and no socket. Each source is opened, then read in rounds: a round is
// what its owner has written since the last one, layer by layer. While more is
// to come, the source stays open for the owner to say so.
// Thread safety: one thread.
class KvMigration {
 public:
  // REQUIRES: `layout` outlives it and validates; layers_in_flight > 0
  KvMigration(uint64_t serial, MigrationRequest request, const KvLayout& layout,
              int32_t layers_in_flight);

  // Takes the steps that became possible.
  std::vector<MigrationStep> TakeSteps();
  // The outcome of a step.
  void OnEvent(size_t source, TransportEvent event);
  // Ends it: no further steps; it is done when what is under way has ended.
  void Fail(Status status);
  // As Fail, because nobody wants the KV any more.
  void Abort();

  // True when nothing is under way and nothing more will be.
  [[nodiscard]] bool done() const;
  [[nodiscard]] const Status& status() const { return status_; }
  [[nodiscard]] const MigrationRequest& request() const { return request_; }
  [[nodiscard]] uint64_t serial() const { return serial_; }
  [[nodiscard]] bool aborted() const { return aborted_; }
  // Seconds since it was made.
  [[nodiscard]] double age() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - made_).count();
  }
  // Asked for so far, and the part of it asked for before the owner had written all.
  [[nodiscard]] uint64_t bytes() const { return bytes_; }
  [[nodiscard]] uint64_t early_bytes() const { return early_bytes_; }

 private:
  struct Source {
    bool needed = true;  // holds heads this rank needs
    bool opening = false;
    bool planned = false;    // `lease` is known and fits
    LeaseInfo lease;         // `done` as the owner last said
    int32_t round_end = 0;   // tokens before it are read, or in the round under way
    int32_t next_layer = 0;  // of the round
    int32_t in_flight = 0;   // reads
    std::vector<std::vector<CopyRange>> plans;  // of the round, one per group
  };

  [[nodiscard]] int32_t num_layers() const { return static_cast<int32_t>(layout_.layers.size()); }
  [[nodiscard]] bool Finished(const Source& source) const;
  // Whether all that is wanted of the source is written.
  [[nodiscard]] bool Written(const Source& source) const;
  // Tokens of which every layer may be read.
  [[nodiscard]] int32_t ReadyTokens(const Source& source) const;
  // Whether a layer may be read; begins the next round when one is over.
  bool HasLayer(size_t index);
  Status PlanRound(Source* source, int32_t end);
  Status CheckInfo(size_t index, const LeaseInfo& info) const;
  void TakeReads(size_t index, std::vector<MigrationStep>* out);
  [[nodiscard]] std::vector<ReadRange> LayerRanges(const Source& source, int32_t layer) const;

  const uint64_t serial_;
  const MigrationRequest request_;
  const KvLayout& layout_;
  const int32_t layers_in_flight_;
  Status status_;
  std::vector<Source> sources_;
  uint64_t bytes_ = 0;
  uint64_t early_bytes_ = 0;
  bool aborted_ = false;
  const TimePoint made_ = std::chrono::steady_clock::now();
};

}  // namespace dlcore

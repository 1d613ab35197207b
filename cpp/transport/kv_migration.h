#pragma once

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
  int32_t layer = 0;  // kRead; min_layers of kOpenLease
  std::vector<ReadRange> ranges;
};

// One sequence's migration as a pure state machine: events in, steps out, no
// thread and no socket. Each source is opened, then read layer by layer as far
// as its owner has written, and opened again to wait for more.
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

  // True when nothing is under way and nothing more will be.
  [[nodiscard]] bool done() const;
  [[nodiscard]] const Status& status() const { return status_; }
  [[nodiscard]] const MigrationRequest& request() const { return request_; }
  [[nodiscard]] uint64_t serial() const { return serial_; }
  [[nodiscard]] uint64_t bytes() const { return bytes_; }

 private:
  struct Source {
    bool needed = true;  // holds heads this rank needs
    bool opening = false;
    bool planned = false;
    int32_t layers_done = 0;  // written at the owner
    int32_t next_layer = 0;
    int32_t in_flight = 0;                      // reads
    std::vector<std::vector<CopyRange>> plans;  // one per group
  };

  [[nodiscard]] int32_t num_layers() const { return static_cast<int32_t>(layout_.layers.size()); }
  Status Plan(size_t index, const LeaseInfo& info);
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
};

}  // namespace dlcore

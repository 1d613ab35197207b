#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dlcore/status.h"
#include "dlcore/step_layout.h"
#include "graph/executable.h"

namespace dlcore {

[[nodiscard]] std::string ToString(const StepKey& key);

// StepKey -> Executable. Either a set of buckets, where a step takes the
// smallest that covers it, or one executable that runs exact counts.
// Thread safety: filled before the engine starts, then engine thread only.
class GraphTable {
 public:
  struct Selection {
    Executable* executable = nullptr;
    StepKey key;  // what it runs as: counts >= the step's
  };

  // InvalidArgument for a key that is malformed, registered already, or mixed
  // with an exact executable.
  Status Add(const StepKey& key, std::unique_ptr<Executable> executable);
  Status SetExact(std::unique_ptr<Executable> executable);

  // The smallest registered key that covers `wanted`: at least its tokens, its
  // sequences and its sampler; a decode step may run as a mixed one.
  // NotFound, naming both sides, when none does.
  Status Find(const StepKey& wanted, Selection* out) const;

 private:
  struct Entry {
    StepKey key;
    std::unique_ptr<Executable> executable;
  };
  std::vector<Entry> entries_;  // cheapest first
  std::unique_ptr<Executable> exact_;
};

}  // namespace dlcore

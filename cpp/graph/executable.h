#pragma once

#include "device/device.h"
#include "dlcore/status.h"
#include "dlcore/step_layout.h"

namespace dlcore {

// Something that runs one step: reads the input arena, writes the output arena
// and the device state. Implementations: CUDA graphs, a Python callable (CPU
// and models under development), the null model of the benchmarks.
class Executable {
 public:
  virtual ~Executable() = default;
  // Enqueues the step `key` on `stream`; `key` is covered by what was registered.
  // Thread safety: engine thread only.
  virtual Status Launch(const StepKey& key, Stream& stream) = 0;
};

}  // namespace dlcore

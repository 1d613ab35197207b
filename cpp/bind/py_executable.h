#pragma once

#include <memory>

#include <nanobind/nanobind.h>

#include "device/device.h"
#include "graph/executable.h"

namespace dlcore {

// The Python callable an engine runs. Shared by the engine object, which drops
// it on stop(), and the executable, which may outlive that.
// Thread safety: only with the GIL held.
struct CallableSlot {
  nanobind::object step;
};

// Runs each step by calling Python: acquires the GIL, calls step(key), and
// turns an exception into a Status. For the CPU and models under development.
class PyExecutable final : public Executable {
 public:
  // `arenas`: host memory that must live as long as a step may run; may be null.
  PyExecutable(std::shared_ptr<CallableSlot> slot, std::shared_ptr<void> arenas);
  Status Launch(const StepKey& key, Stream& stream) override;

 private:
  std::shared_ptr<CallableSlot> slot_;
  std::shared_ptr<void> arenas_;
};

}  // namespace dlcore

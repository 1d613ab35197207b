#pragma once

#include <memory>

#include "engine/polled_constraint.h"

namespace dlcore {

// What Python holds. The engine shares the constraint itself, never this
// object, so that the engine thread drops it without the GIL.
struct PyConstraint {
  std::shared_ptr<PolledConstraint> constraint;
};

struct PyConstraintQueue {
  std::shared_ptr<ConstraintQueue> queue = std::make_shared<ConstraintQueue>();
};

}  // namespace dlcore

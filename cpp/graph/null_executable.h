#pragma once

#include <cstdint>
#include <memory>

#include "dlcore/step_layout.h"
#include "graph/executable.h"

namespace dlcore {

// No model: the distribution is uniform and the token at a position is a fixed
// function of the position (moved to the next allowed token under a mask). For
// benchmarks of everything around the model. Arenas are host memory.
// `step_delay_us` is how long each step takes, as a stand-in for a device.
std::unique_ptr<Executable> NewNullExecutable(const StepLimits& limits, uint64_t input_arena,
                                              uint64_t output_arena, int64_t step_delay_us);

}  // namespace dlcore

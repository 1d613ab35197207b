#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "dlcore/status.h"
#include "graph/executable.h"

namespace dlcore {

// Captured CUDA graphs launched in order: the model's, then the sampler's.
// `graph_execs` are raw CUgraphExec handles; their owner (the capturing runner)
// keeps them alive until the engine stops.
// InvalidArgument for an empty list or a null handle, Unavailable without a driver.
Status NewCudaGraphExecutable(std::span<const uint64_t> graph_execs,
                              std::unique_ptr<Executable>* out);

}  // namespace dlcore

#pragma once

#include "kernels/common.cuh"

namespace dlcore::kernels {

// Zero between launches.
struct PrefillCounters {
  // Of decode attention beside it: the layer's cache, once q and what the step adds to it are
  // there. Not just a flag: blocks may start before the layer before has cleared its own.
  const void* ready;
  int taken;  // parts of the work, but for those that blocks begin with
  int left;   // blocks that take no more
};

// Prefill attention's workspace, zeroed once.
struct PrefillWorkspace {
  // Parts of a tile of work that share its keys have a slot each; there are at most as many as
  // multiprocessors (prefill_schedule.cuh).
  static constexpr int kSlots = kMultiprocessors;
  static constexpr int kWarpgroups = 2, kThreads = 128, kVectors = 17;

  PrefillCounters counters;
  int arrived[kSlots][kWarpgroups];  // parts, at the slot of a tile's first; zero between launches
  // A thread's sums of the values, then its rows' maxima and sums of weights.
  alignas(128) float4 parts[kSlots][kWarpgroups][kVectors][kThreads];
};

}  // namespace dlcore::kernels

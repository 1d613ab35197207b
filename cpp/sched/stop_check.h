#pragma once

#include "dlcore/request.h"
#include "sched/sequence.h"

namespace dlcore {

// Whether the last output token ends the sequence, and why. Stop ids win over
// length. REQUIRES: sequence.num_output() > 0
FinishReason CheckStop(const Sequence& sequence);

}  // namespace dlcore

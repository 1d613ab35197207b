#pragma once

#include "dlcore/options.h"
#include "dlcore/request.h"
#include "dlcore/status.h"

namespace dlcore {

// OK, or InvalidArgument naming the field and the fix: everything about a
// request that can be judged without the engine's state. Any thread.
Status ValidateRequest(const Request& request, const EngineOptions& options);

}  // namespace dlcore

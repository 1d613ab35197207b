#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include <nanobind/nanobind.h>

#include "dlcore/status.h"
#include "dlcore/types.h"

namespace dlcore {

// One function per core header; each adds its classes to the module.
void BindRequest(nanobind::module_& module);
void BindOptions(nanobind::module_& module);
void BindStepLayout(nanobind::module_& module);
void BindOutput(nanobind::module_& module);
void BindConstraint(nanobind::module_& module);
void BindEngine(nanobind::module_& module);
void BindKvTransfer(nanobind::module_& module);

// Python sees these as subclasses of RuntimeError.
struct UnavailableError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct QueueFullError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Raises what Python should see: ValueError for an invalid argument,
// EngineUnavailable, QueueFull, else RuntimeError. Nothing when OK.
void ThrowIfError(const Status& status);

// Token ids from an int32 or int64 array (one copy) or any sequence of ints.
// Raises ValueError naming `field` for anything else.
std::vector<TokenId> ToTokenIds(nanobind::handle source, const char* field);

}  // namespace dlcore

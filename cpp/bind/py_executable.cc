#include "bind/py_executable.h"

#include <string>
#include <utility>

#include "base/log.h"

namespace nb = nanobind;

namespace dlcore {
namespace {

Status ToStatus(nb::python_error& error) {
  Log(LogLevel::kError, std::string("the model's step raised:\n") + error.what());
  const nb::str type(error.type().attr("__name__"));
  const nb::str value(error.value());
  return Status::Internal(std::string("the model's step raised ") + type.c_str() + ": " +
                          value.c_str());
}

}  // namespace

PyExecutable::PyExecutable(std::shared_ptr<CallableSlot> slot, std::shared_ptr<void> arenas)
    : slot_(std::move(slot)), arenas_(std::move(arenas)) {}

Status PyExecutable::Launch(const StepKey& key, Stream& /*stream*/) {
  const nb::gil_scoped_acquire gil;
  if (!slot_->step.is_valid()) return Status::Unavailable("the engine is stopped");
  try {
    // A reference of our own: stop() may drop the slot's while the call runs.
    const nb::object step = slot_->step;
    step(key);
    return {};
  } catch (nb::python_error& error) {
    return ToStatus(error);
  }
}

}  // namespace dlcore

#include "bind/bind.h"
#include "bind/py_engine.h"

namespace nb = nanobind;

NB_MODULE(_core, m) {
  m.doc() = "The seam between dlcore's C++ runtime and Python.";
  nb::exception<dlcore::UnavailableError>(m, "EngineUnavailable", PyExc_RuntimeError);
  nb::exception<dlcore::QueueFullError>(m, "QueueFull", PyExc_RuntimeError);
  dlcore::BindRequest(m);
  dlcore::BindOptions(m);
  dlcore::BindStepLayout(m);
  dlcore::BindOutput(m);
  dlcore::BindConstraint(m);
  dlcore::BindKvTransfer(m);
  dlcore::BindEngine(m);
  nb::module_::import_("atexit").attr("register")(nb::cpp_function(&dlcore::StopAllEngines));
}

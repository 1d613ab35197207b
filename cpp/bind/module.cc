#include "bind/bind.h"
#include "bind/py_engine.h"
#include "device/cuda_driver.h"

namespace nb = nanobind;

namespace {

int NumGpus() {
  const dlcore::CudaDriver* cuda = nullptr;
  int count = 0;
  const bool found =
      dlcore::LoadCudaDriver(&cuda).ok() && cuda->DeviceGetCount(&count) == dlcore::kCuSuccess;
  return found ? count : 0;
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "The seam between dlcore's C++ runtime and Python.";
  nb::exception<dlcore::UnavailableError>(m, "EngineUnavailable", PyExc_RuntimeError);
  nb::exception<dlcore::QueueFullError>(m, "QueueFull", PyExc_RuntimeError);
  m.def("num_gpus", &NumGpus, "GPUs the driver shows this process; 0 where there is no driver.");
  dlcore::BindRequest(m);
  dlcore::BindOptions(m);
  dlcore::BindStepLayout(m);
  dlcore::BindOutput(m);
  dlcore::BindConstraint(m);
  dlcore::BindKvTransfer(m);
  dlcore::BindEngine(m);
  nb::module_::import_("atexit").attr("register")(nb::cpp_function(&dlcore::StopAllEngines));
}

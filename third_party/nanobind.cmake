# nanobind, for the Python extension: the package of the interpreter that the
# extension is built for (a build requirement in pyproject.toml).
set(DLCORE_NANOBIND_MINIMUM 2.4)
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
execute_process(COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir
  OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE nanobind_ROOT RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${Python_EXECUTABLE} has no nanobind: pip install "
    "'nanobind>=${DLCORE_NANOBIND_MINIMUM}', or configure with -DDLCORE_PYTHON=OFF")
endif()
find_package(nanobind CONFIG REQUIRED)
if(nanobind_VERSION VERSION_LESS DLCORE_NANOBIND_MINIMUM)
  message(FATAL_ERROR "nanobind ${nanobind_VERSION} is older than ${DLCORE_NANOBIND_MINIMUM}")
endif()

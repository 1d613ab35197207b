# dlslime, for the `dlslime` transport only: the wheel of the Python that builds.
# Without it, or without the headers its own headers need (libibverbs, libnuma), the
# transport is left out. Its CMake package names include folders that its headers do not
# fit, so the library is described here.
file(STRINGS "${PROJECT_SOURCE_DIR}/pyproject.toml" pin REGEX "^dlslime = ")
string(REGEX MATCH "==([0-9.]+)" pin "${pin}")
set(DLCORE_DLSLIME_RELEASE "${CMAKE_MATCH_1}")
option(DLCORE_DLSLIME "Build the dlslime transport where the wheel is found" ON)
set(DLCORE_DLSLIME_FOUND OFF)
if(NOT DLCORE_DLSLIME)
  return()
endif()
find_program(DLCORE_DLSLIME_PYTHON NAMES python3 python)
if(Python_EXECUTABLE)
  set(DLCORE_DLSLIME_PYTHON "${Python_EXECUTABLE}")
endif()
if(NOT DLCORE_DLSLIME_PYTHON)
  return()
endif()
execute_process(
  COMMAND ${DLCORE_DLSLIME_PYTHON} -c
    "import importlib.metadata as m; d = m.distribution('dlslime'); print(d.version, d.locate_file(''), sep=';', end='')"
  OUTPUT_VARIABLE found RESULT_VARIABLE result ERROR_QUIET)
if(NOT result EQUAL 0)
  message(STATUS "dlslime: no wheel in ${DLCORE_DLSLIME_PYTHON}; the transport is left out")
  return()
endif()
list(GET found 0 version)
list(GET found 1 site)
if(NOT version STREQUAL DLCORE_DLSLIME_RELEASE)
  message(STATUS "dlslime: ${version} is installed, ${DLCORE_DLSLIME_RELEASE} is needed; "
    "the transport is left out")
  return()
endif()
find_path(DLCORE_VERBS_INCLUDE infiniband/verbs.h)
find_library(DLCORE_VERBS_LIBRARY ibverbs)
find_path(DLCORE_NUMA_INCLUDE numa.h)
if(NOT DLCORE_VERBS_INCLUDE OR NOT DLCORE_VERBS_LIBRARY OR NOT DLCORE_NUMA_INCLUDE)
  message(STATUS "dlslime: needs libibverbs-dev and libnuma-dev; the transport is left out")
  return()
endif()
cmake_path(NORMAL_PATH site)
set(DLCORE_DLSLIME_LIBRARIES "${site}/dlslime")
file(SHA256 "${DLCORE_DLSLIME_LIBRARIES}/lib_slime_rdma.so" DLCORE_DLSLIME_SHA256)
add_library(dlslime_rdma SHARED IMPORTED)
set_target_properties(dlslime_rdma PROPERTIES
  IMPORTED_LOCATION "${DLCORE_DLSLIME_LIBRARIES}/lib_slime_rdma.so"
  INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${site};${DLCORE_VERBS_INCLUDE};${DLCORE_NUMA_INCLUDE}"
  INTERFACE_INCLUDE_DIRECTORIES "${site};${DLCORE_VERBS_INCLUDE};${DLCORE_NUMA_INCLUDE}"
  INTERFACE_LINK_LIBRARIES "${DLCORE_VERBS_LIBRARY}"
  INTERFACE_LINK_OPTIONS "LINKER:-rpath-link,${DLCORE_DLSLIME_LIBRARIES}")
set(DLCORE_DLSLIME_FOUND ON)
message(STATUS "dlslime: ${version} in ${DLCORE_DLSLIME_LIBRARIES}")

# Google Benchmark, for tools/bench_* only: the system's package, or, when asked
# for, the pinned release below. Nothing is downloaded by default.
option(DLCORE_FETCH_DEPS "Download GoogleTest and Google Benchmark at configure time" OFF)
set(DLCORE_BENCHMARK_MINIMUM 1.7)
if(DLCORE_FETCH_DEPS)
  include(FetchContent)
  FetchContent_Declare(benchmark
    GIT_REPOSITORY https://github.com/google/benchmark.git
    GIT_TAG v1.8.3)
  set(BENCHMARK_ENABLE_TESTING OFF CACHE BOOL "" FORCE)
  set(BENCHMARK_ENABLE_INSTALL OFF CACHE BOOL "" FORCE)
  FetchContent_MakeAvailable(benchmark)
else()
  find_package(benchmark ${DLCORE_BENCHMARK_MINIMUM})
  if(NOT benchmark_FOUND)
    message(FATAL_ERROR "DLCORE_BENCHMARKS needs Google Benchmark ${DLCORE_BENCHMARK_MINIMUM} or "
      "newer: apt-get install libbenchmark-dev, or configure with -DDLCORE_FETCH_DEPS=ON")
  endif()
endif()

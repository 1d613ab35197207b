# GoogleTest, for the C++ tests only: the system's package, or, when asked for,
# the pinned release below. Nothing is downloaded by default.
option(DLCORE_FETCH_DEPS "Download GoogleTest and Google Benchmark at configure time" OFF)
set(DLCORE_GTEST_MINIMUM 1.12)
if(DLCORE_FETCH_DEPS)
  include(FetchContent)
  FetchContent_Declare(googletest
    GIT_REPOSITORY https://github.com/google/googletest.git
    GIT_TAG v1.14.0)
  set(INSTALL_GTEST OFF CACHE BOOL "" FORCE)
  FetchContent_MakeAvailable(googletest)
else()
  find_package(GTest ${DLCORE_GTEST_MINIMUM})
  if(NOT GTest_FOUND)
    message(FATAL_ERROR "DLCORE_TESTS needs GoogleTest ${DLCORE_GTEST_MINIMUM} or newer with gmock: "
      "apt-get install libgtest-dev libgmock-dev, or configure with -DDLCORE_FETCH_DEPS=ON")
  endif()
endif()

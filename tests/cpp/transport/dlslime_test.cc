#ifdef DLCORE_RDMA

#include "transport/dlslime_library.h"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>

#include "gtest/gtest.h"
#include "transport/verbs.h"

namespace dlcore {
namespace {
double Ms(std::chrono::steady_clock::time_point a) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - a).count() * 1e3;
}
TEST(DlslimeTiming, X) {
  std::string name;
  ASSERT_TRUE(FindVerbsDevice({}, &name).ok());
  const DlslimePlugin* plugin = nullptr;
  auto t = std::chrono::steady_clock::now();
  ASSERT_TRUE(LoadDlslime(&plugin).ok());
  printf("load %.1f ms\n", Ms(t));
  std::shared_ptr<DlslimeDevice> device;
  t = std::chrono::steady_clock::now();
  ASSERT_TRUE(plugin->open(name, &device).ok());
  printf("open %.1f ms\n", Ms(t));
  for (size_t mb : {1, 1, 4, 16, 16}) {
    t = std::chrono::steady_clock::now();
    std::unique_ptr<VerbsEndpoint> v;
    ASSERT_TRUE(VerbsEndpoint::Create({}, mb << 20, 0, &v).ok());
    printf("verbs %zu MiB: %.1f ms", mb, Ms(t));
    t = std::chrono::steady_clock::now();
    v.reset();
    printf(" close %.1f ms\n", Ms(t));
    t = std::chrono::steady_clock::now();
    std::unique_ptr<DlslimeEndpoint> e;
    ASSERT_TRUE(device->NewEndpoint(mb << 20, 4, &e).ok());
    printf("dlslime %zu MiB: %.1f ms", mb, Ms(t));
    t = std::chrono::steady_clock::now();
    e.reset();
    printf(" close %.1f ms\n", Ms(t));
  }
  t = std::chrono::steady_clock::now();
  device.reset();
  printf("device close %.1f ms\n", Ms(t));
}
}  // namespace
}  // namespace dlcore
#endif

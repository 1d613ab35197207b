#include "device/device.h"

#include <array>
#include <cstring>

#include "device/cuda_driver.h"
#include "gtest/gtest.h"

namespace dlcore {
namespace {

bool HasGpu() {
  const CudaDriver* cuda = nullptr;
  int count = 0;
  return LoadCudaDriver(&cuda).ok() && cuda->DeviceGetCount(&count) == kCuSuccess && count > 0;
}

TEST(CpuDeviceTest, CopiesAreCompleteWhenTheyReturn) {
  const std::unique_ptr<Device> device = NewCpuDevice();
  std::unique_ptr<Stream> stream;
  std::unique_ptr<Event> event;
  std::unique_ptr<PinnedBuffer> host;
  ASSERT_TRUE(device->BindThread().ok());
  ASSERT_TRUE(device->NewStream(&stream).ok());
  ASSERT_TRUE(device->NewEvent(&event).ok());
  ASSERT_TRUE(device->NewPinnedBuffer(64, &host).ok());
  std::array<std::byte, 64> arena{};
  const auto address = reinterpret_cast<uint64_t>(arena.data());

  std::memset(host->bytes().data(), 7, 64);
  ASSERT_TRUE(stream->CopyToDevice(address, host->bytes().first(32)).ok());
  EXPECT_EQ(arena[31], std::byte{7});
  EXPECT_EQ(arena[32], std::byte{0});

  arena.fill(std::byte{9});
  ASSERT_TRUE(stream->CopyToHost(host->bytes(), address).ok());
  EXPECT_EQ(host->bytes()[63], std::byte{9});

  bool done = false;
  ASSERT_TRUE(event->Record(*stream).ok());
  ASSERT_TRUE(event->Query(&done).ok());
  EXPECT_TRUE(done);
  EXPECT_FALSE(device->asynchronous());
}

TEST(CpuDeviceTest, BuffersAreZeroedAndAligned) {
  std::unique_ptr<PinnedBuffer> host;
  ASSERT_TRUE(NewCpuDevice()->NewPinnedBuffer(1000, &host).ok());
  EXPECT_EQ(host->bytes().size(), 1000u);
  EXPECT_EQ(reinterpret_cast<uint64_t>(host->bytes().data()) % 64, 0u);
  for (const std::byte b : host->bytes()) ASSERT_EQ(b, std::byte{0});
}

TEST(CudaDeviceTest, WithoutAGpuTheStatusSaysWhatIsMissing) {
  if (HasGpu()) GTEST_SKIP() << "this machine has a GPU";
  std::unique_ptr<Device> device;
  const Status status = NewCudaDevice(0, &device);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("device 'cuda'"), std::string::npos) << status.message();
  EXPECT_EQ(device, nullptr);
}

TEST(CudaDeviceTest, AnIndexNobodyHasIsNamed) {
  if (!HasGpu()) GTEST_SKIP() << "needs a GPU";
  std::unique_ptr<Device> device;
  const Status status = NewCudaDevice(4096, &device);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("device_index 4096"), std::string::npos);
}

TEST(CudaDeviceTest, AnEventIsDoneOnlyAfterTheCopiesBeforeIt) {
  if (!HasGpu()) GTEST_SKIP() << "needs a GPU";
  std::unique_ptr<Device> device;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<Event> event;
  std::unique_ptr<PinnedBuffer> from;
  std::unique_ptr<PinnedBuffer> to;
  ASSERT_TRUE(NewCudaDevice(0, &device).ok());
  ASSERT_TRUE(device->NewStream(&stream).ok());
  ASSERT_TRUE(device->NewEvent(&event).ok());
  ASSERT_TRUE(device->NewPinnedBuffer(1 << 20, &from).ok());
  ASSERT_TRUE(device->NewPinnedBuffer(1 << 20, &to).ok());
  std::memset(from->bytes().data(), 5, from->bytes().size());
  // Pinned memory has a device address of its own, equal to the host's under
  // unified addressing: no allocation on the device is needed.
  ASSERT_TRUE(
      stream->CopyToDevice(reinterpret_cast<uint64_t>(to->bytes().data()), from->bytes()).ok());
  ASSERT_TRUE(event->Record(*stream).ok());
  bool done = false;
  while (!done) ASSERT_TRUE(event->Query(&done).ok());
  EXPECT_EQ(to->bytes().back(), std::byte{5});
}

}  // namespace
}  // namespace dlcore

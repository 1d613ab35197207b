#include <algorithm>
#include <optional>
#include <random>

#include "gtest/gtest.h"
#include "tests/cpp/transport/gpu_memory.h"
#include "transport/cuda_stream.h"

// Copies of many ranges by a GPU: on a machine without one nothing is to be tested.
namespace dlcore::testing_harness {
namespace {

class CudaCopies : public testing::Test {
 protected:
  void SetUp() override {
    if (NumGpus() == 0) GTEST_SKIP() << "needs a GPU";
    ASSERT_TRUE(CudaCopyStream::Create(0, &stream_).ok());
  }
  static Bytes Random(size_t count, uint64_t seed) {
    std::mt19937_64 engine(seed);
    Bytes bytes(count);
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(engine());
    return bytes;
  }

  std::unique_ptr<CudaCopyStream> stream_;
};

TEST_F(CudaCopies, RangesOfAnyAlignmentLandWhereAskedAndNowhereElse) {
  const Bytes from = Random(8 << 20, 1);
  std::mt19937_64 engine(2);
  for (const uint64_t alignment : {16, 4, 1}) {
    for (const size_t count : {2, 3, 100, 4096}) {
      Bytes to(from.size(), 0xee);
      Bytes expected = to;
      std::vector<CudaCopy> copies;
      const size_t stride = to.size() / count;
      for (size_t i = 0; i < count; ++i) {
        const uint64_t length = engine() % std::min<uint64_t>(stride, 300'000) & ~(alignment - 1);
        const uint64_t at = engine() % (from.size() - length) & ~(alignment - 1);
        if (length == 0) continue;
        copies.push_back({reinterpret_cast<CuAddress>(to.data() + i * stride),
                          reinterpret_cast<CuAddress>(from.data() + at), length});
        std::copy_n(from.data() + at, length, expected.data() + i * stride);
      }
      ASSERT_TRUE(stream_->Bind().ok());
      ASSERT_TRUE(stream_->Copy(copies).ok());
      ASSERT_TRUE(stream_->Synchronize().ok());
      ASSERT_EQ(to, expected) << "alignment " << alignment << ", " << count << " ranges";
    }
  }
}

TEST_F(CudaCopies, PoolsAreReachedFromPinnedAndFromAnyOtherHostMemory) {
  Bytes pool = Random(6 << 20, 3);
  std::vector<MemoryRange> ranges;
  for (uint64_t at = 0; at + 70'000 < pool.size(); at += 100'000) {
    ranges.push_back({reinterpret_cast<uint64_t>(pool.data()) + at, 70'000});
  }
  std::vector<std::byte> expected;
  for (const MemoryRange& range : ranges) {
    const auto* first = reinterpret_cast<const std::byte*>(range.address);
    expected.insert(expected.end(), first, first + range.length);
  }
  PoolMemory& memory = MemoryOf(Side::kOwner);
  for (const bool pinned : {false, true}) {
    std::vector<std::byte> host(TotalBytes(ranges));
    std::optional<HostPin> pin;
    if (pinned) pin.emplace(&memory, std::span(host));
    ASSERT_TRUE(memory.Gather(ranges, host.data()).ok());
    ASSERT_EQ(host, expected);
    std::fill(pool.begin(), pool.end(), uint8_t{0});
    ASSERT_TRUE(memory.Scatter(host.data(), ranges).ok());
    std::vector<std::byte> back(host.size());
    ASSERT_TRUE(memory.Gather(ranges, back.data()).ok());
    ASSERT_EQ(back, expected);
  }
}

}  // namespace
}  // namespace dlcore::testing_harness

#ifdef DLCORE_RDMA

#include "transport/verbs.h"

#include <chrono>
#include <cstring>
#include <thread>

#include "gtest/gtest.h"

// What the hardware itself refuses, beneath the protocol. Needs an RDMA device.
namespace dlcore {
namespace {

constexpr size_t kBytes = 64 * 1024;

class Verbs : public testing::Test {
 protected:
  void SetUp() override {
    const Status s = CheckVerbsDevice({});
    if (!s.ok()) GTEST_SKIP() << s.message();
    constexpr int kWindow = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
    ASSERT_TRUE(VerbsEndpoint::Create({}, kBytes, kWindow, &reader_).ok());
    ASSERT_TRUE(VerbsEndpoint::Create({}, kBytes, 0, &owner_).ok());
    ASSERT_TRUE(reader_->Connect(owner_->address()).ok());
    ASSERT_TRUE(owner_->Connect(reader_->address()).ok());
    std::memset(owner_->memory(), 0x5a, kBytes);
  }
  [[nodiscard]] uint64_t window() const { return reinterpret_cast<uint64_t>(reader_->memory()); }

  Status Write(uint64_t length, uint64_t address, uint32_t rkey) {
    if (Status s = owner_->PostWrite(length, address, rkey); !s.ok()) return s;
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    while (std::chrono::steady_clock::now() < give_up) {
      bool done = false;
      if (Status s = owner_->PollWrite(&done); !s.ok() || done) return s;
      std::this_thread::yield();
    }
    return Status::DeadlineExceeded("no completion");
  }
  void ExpectWindowUntouched() {
    for (size_t i = 0; i < kBytes; ++i) ASSERT_EQ(reader_->memory()[i], std::byte{0}) << i;
  }

  std::unique_ptr<VerbsEndpoint> reader_;
  std::unique_ptr<VerbsEndpoint> owner_;
};

TEST_F(Verbs, WriteWithTheWindowsKeyArrives) {
  ASSERT_TRUE(Write(kBytes, window(), reader_->rkey()).ok());
  EXPECT_EQ(std::memcmp(reader_->memory(), owner_->memory(), kBytes), 0);
}

TEST_F(Verbs, WrongKeyIsRefused) {
  const Status s = Write(kBytes, window(), reader_->rkey() ^ 0x100);
  EXPECT_EQ(s.code(), StatusCode::kUnavailable) << s.message();
  ExpectWindowUntouched();
}

TEST_F(Verbs, WriteBeyondTheWindowIsRefused) {
  const Status s = Write(kBytes, window() + kBytes / 2, reader_->rkey());
  EXPECT_EQ(s.code(), StatusCode::kUnavailable) << s.message();
}

TEST_F(Verbs, OwnersMemoryCannotBeReached) {
  // The reader tries to write where the owner gathers: no key opens it.
  const uint64_t target = reinterpret_cast<uint64_t>(owner_->memory());
  std::swap(reader_, owner_);
  EXPECT_FALSE(Write(64, target, reader_->rkey()).ok());
}

TEST_F(Verbs, DestroyedWindowTakesNoLateWrite) {
  const uint64_t address = window();
  const uint32_t rkey = reader_->rkey();
  reader_.reset();
  EXPECT_FALSE(Write(kBytes, address, rkey).ok());
}

}  // namespace
}  // namespace dlcore

#endif  // DLCORE_RDMA

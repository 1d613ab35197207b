#include <atomic>
#include <chrono>
#include <thread>

#include "base/event_fd.h"
#include "base/seqlock.h"
#include "gtest/gtest.h"

namespace dlcore {
namespace {

struct Pair {
  uint64_t a = 0;
  uint64_t b = 0;
  uint32_t c = 0;
};

TEST(SeqLockTest, AReaderNeverSeesHalfAWrite) {
  SeqLock<Pair> lock;
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (uint64_t i = 0; !stop; ++i) lock.Store({i, ~i, static_cast<uint32_t>(i)});
  });
  while (lock.Load().b == 0) std::this_thread::yield();
  for (int i = 0; i < 20000; ++i) {
    const Pair seen = lock.Load();
    ASSERT_EQ(seen.b, ~seen.a);
    ASSERT_EQ(seen.c, static_cast<uint32_t>(seen.a));
  }
  stop = true;
  writer.join();
}

TEST(EventFdTest, StaysReadableUntilDrained) {
  EventFd event;
  ASSERT_TRUE(event.valid());
  EXPECT_FALSE(event.Wait(0));
  event.Signal();
  event.Signal();
  EXPECT_TRUE(event.Wait(0));
  EXPECT_TRUE(event.Wait(-1));
  event.Drain();
  EXPECT_FALSE(event.Wait(0.001));
}

TEST(EventFdTest, WaitIsWokenByAnotherThread) {
  EventFd event;
  std::thread signaller([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    event.Signal();
  });
  EXPECT_TRUE(event.Wait(30));
  signaller.join();
}

}  // namespace
}  // namespace dlcore

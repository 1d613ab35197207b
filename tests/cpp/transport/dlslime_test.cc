#ifdef DLCORE_RDMA

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iostream>
#include <memory>

#include "tests/cpp/transport/transport_harness.h"
#include "transport/dlslime_library.h"
#include "transport/verbs.h"

// What dlslime itself does, beneath the protocol. Needs an RDMA device and the wheel.
namespace dlcore::testing_harness {
namespace {

constexpr size_t kBytes = 1 << 20;

class Dlslime : public testing::Test {
 protected:
  void SetUp() override {
    std::string name;
    if (const Status s = FindVerbsDevice({}, &name); !s.ok()) GTEST_SKIP() << s.message();
    const DlslimePlugin* plugin = nullptr;
    if (const Status s = LoadDlslime(&plugin); !s.ok()) GTEST_SKIP() << s.message();
    ASSERT_TRUE(plugin->open(name, &device_).ok());
    MakePair();
  }
  void MakePair() {
    reader_ = NewEndpoint();
    owner_ = NewEndpoint();
    for (size_t i = 0; i < kBytes; ++i) owner_->memory()[i] = Content(i);
  }
  std::unique_ptr<DlslimeEndpoint> NewEndpoint() {
    std::unique_ptr<DlslimeEndpoint> endpoint;
    const Status s = device_->NewEndpoint(kBytes, 2, &endpoint);
    EXPECT_TRUE(s.ok()) << s.message();
    return endpoint;
  }
  static std::byte Content(size_t i) { return static_cast<std::byte>(1 + i * 131 % 251); }
  static RemoteMemory MemoryOf(const DlslimeEndpoint& endpoint) {
    return {reinterpret_cast<uint64_t>(endpoint.memory()), kBytes, endpoint.rkey()};
  }
  void Connect(const RemoteMemory& memory) {
    ASSERT_TRUE(owner_->Connect(reader_->address(), {}).ok());
    ASSERT_TRUE(reader_->Connect(owner_->address(), memory).ok());
  }
  // How a read ended; it is woken for exactly once.
  Status Read(uint64_t offset, uint64_t length) {
    std::atomic<int> wakes{0};
    if (Status s = reader_->PostRead(0, offset, length, [&] { ++wakes; }); !s.ok()) return s;
    const TimePoint give_up = In(seconds(30));
    while (wakes == 0 && std::chrono::steady_clock::now() < give_up) std::this_thread::yield();
    EXPECT_EQ(wakes, 1);
    bool done = false;
    const Status s = reader_->PollRead(0, &done);
    EXPECT_TRUE(done);
    return s;
  }
  void ExpectNothingArrived() {
    EXPECT_TRUE(std::all_of(reader_->memory(), reader_->memory() + kBytes,
                            [](std::byte b) { return b == std::byte{0}; }));
  }

  std::shared_ptr<DlslimeDevice> device_;
  std::unique_ptr<DlslimeEndpoint> reader_;
  std::unique_ptr<DlslimeEndpoint> owner_;
};

TEST_F(Dlslime, ReadsBringTheirBytesAndNoOthers) {
  Connect(MemoryOf(*owner_));
  ASSERT_TRUE(Read(4096, kBytes / 2).ok());
  for (size_t i = 0; i < kBytes; ++i) {
    const bool asked = i >= 4096 && i < 4096 + kBytes / 2;
    ASSERT_EQ(reader_->memory()[i], asked ? Content(i) : std::byte{0}) << i;
  }
}

TEST_F(Dlslime, WrongKeyIsRefused) {
  RemoteMemory memory = MemoryOf(*owner_);
  memory.rkey ^= 0x100;
  Connect(memory);
  EXPECT_EQ(Read(0, 4096).code(), StatusCode::kUnavailable);
  ExpectNothingArrived();
}

TEST_F(Dlslime, ReadBeyondTheMemoryIsRefused) {
  RemoteMemory memory = MemoryOf(*owner_);
  memory.address += kBytes / 2;
  Connect(memory);
  EXPECT_EQ(Read(0, kBytes).code(), StatusCode::kUnavailable);
}

TEST_F(Dlslime, MemoryOfOtherConnectionsCannotBeReached) {
  const std::unique_ptr<DlslimeEndpoint> other = NewEndpoint();
  std::memset(other->memory(), 0x5a, kBytes);
  Connect(MemoryOf(*other));  // its right key and address, over another connection
  EXPECT_EQ(Read(0, 4096).code(), StatusCode::kUnavailable);
  ExpectNothingArrived();
}

// Soft-RoCE never gives up a silent peer: that is what the protocol's deadlines are for.
TEST_F(Dlslime, ReadFromADestroyedPeerNeverSucceeds) {
  Connect(MemoryOf(*owner_));
  ASSERT_TRUE(Read(0, 4096).ok());
  owner_.reset();
  ASSERT_TRUE(reader_->PostRead(0, 4096, 4096, [] {}).ok());
  const TimePoint end = In(seconds(1));
  bool done = false;
  Status s;
  while (!done && std::chrono::steady_clock::now() < end) s = reader_->PollRead(0, &done);
  EXPECT_FALSE(done && s.ok());
  EXPECT_EQ(reader_->memory()[4096], std::byte{0});
}

TEST_F(Dlslime, NobodyIsWokenAfterTheEndpointIsGone) {
  for (int round = 0; round < 50; ++round) {
    MakePair();
    Connect(MemoryOf(*owner_));
    std::atomic<bool> gone{false};
    std::atomic<int> late{0};
    for (const uint32_t number : {0U, 1U}) {
      ASSERT_TRUE(reader_->PostRead(number, 0, kBytes, [&] { late += gone ? 1 : 0; }).ok());
    }
    std::this_thread::sleep_for(std::chrono::microseconds(round * 100));
    (round % 2 == 0 ? reader_ : owner_).reset();  // in the middle, either side
    reader_.reset();
    gone = true;
    owner_.reset();
    ASSERT_EQ(late, 0);
  }
  MakePair();
  Connect(MemoryOf(*owner_));
  EXPECT_TRUE(Read(0, kBytes).ok());
}

// Seconds for the same bytes over a transport, the best of three.
double PullSeconds(const std::string& transport) {
  Owner::Settings settings;
  settings.layout.groups[0].bytes_per_head = 16384;  // 1 MiB blocks
  Owner owner(transport, settings);
  LeaseBlocks blocks(2);
  for (int32_t i = 0; i < 32; ++i) blocks[0].emplace_back(i);
  const LeaseRef lease = owner.Lease(blocks);
  Reader reader(owner.server->endpoint());
  std::vector<uint8_t> local(owner.pool.layer(0).size());
  double best = 1e9;
  for (int round = 0; round < 3; ++round) {
    std::fill(local.begin(), local.end(), uint8_t{0});
    const TimePoint start = std::chrono::steady_clock::now();
    EXPECT_TRUE(reader.Read(lease, 0, {RangeTo(0, local.data(), local.size())}, seconds(60)).ok());
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::min(best, took.count());
    EXPECT_TRUE(std::equal(local.begin(), local.end(), owner.pool.layer(0).begin()));
  }
  return best;
}

TEST_F(Dlslime, TheSameBytesArriveAsOverVerbs) {
  std::cout << "dlslime needs " << PullSeconds("dlslime") / PullSeconds("rdma")
            << " times the time of rdma (an emulated machine: only the ratio means anything)\n";
}

}  // namespace
}  // namespace dlcore::testing_harness

#endif  // DLCORE_RDMA

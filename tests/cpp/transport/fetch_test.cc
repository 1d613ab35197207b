// Answers that the reader fetches: what holds whatever the fetch does.
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "tests/cpp/transport/transport_harness.h"
#include "transport/lease_client.h"
#include "transport/lease_server.h"

namespace dlcore::testing_harness {
namespace {

constexpr uint32_t kSlots = 2;
constexpr uint64_t kSlotBytes = 64 * 1024;

// Memory both sides of this test's transport reach; fetches end when they may.
struct Mailbox {
  enum class Mode { kAtOnce, kHeld, kBroken };
  std::atomic<Mode> mode{Mode::kAtOnce};
  std::atomic<int> started{0};
  std::vector<std::byte> slots = std::vector<std::byte>(kSlots * kSlotBytes);
  std::mutex mutex;  // guards the rest
  std::function<void()> wake;

  void Let(Mode next) {
    mode = next;
    const std::lock_guard lock(mutex);
    if (wake) wake();
  }
};

class MailboxOwnerPlane final : public OwnerPlane {
 public:
  MailboxOwnerPlane(PoolMemory* memory, Mailbox* box) : memory_(memory), box_(box) {}
  Status Attach(const Blob&, UniqueFd, Blob*) override { return Status::Ok(); }
  [[nodiscard]] uint32_t num_slots() const override { return kSlots; }
  [[nodiscard]] uint64_t slot_bytes() const override { return kSlotBytes; }
  Status Begin(uint32_t slot, std::span<const MemoryRange> sources, Blob*) override {
    return memory_->Gather(sources, box_->slots.data() + slot * kSlotBytes);
  }
  Status Poll(bool* done) override {
    *done = true;
    return Status::Ok();
  }

 private:
  PoolMemory* memory_;
  Mailbox* box_;
};

class MailboxReaderPlane final : public ReaderPlane {
 public:
  MailboxReaderPlane(PoolMemory* memory, Mailbox* box) : memory_(memory), box_(box) {}
  ~MailboxReaderPlane() override {
    const std::lock_guard lock(box_->mutex);
    box_->wake = nullptr;
  }
  Status Offer(Blob*, int*) override { return Status::Ok(); }
  Status Accept(const Blob&) override { return Status::Ok(); }
  [[nodiscard]] uint32_t num_slots() const override { return kSlots; }
  [[nodiscard]] uint64_t slot_bytes() const override { return kSlotBytes; }
  Status BeginFetch(uint32_t, uint64_t, std::function<void()> wake) override {
    const std::lock_guard lock(box_->mutex);
    box_->wake = std::move(wake);
    ++box_->started;
    return Status::Ok();
  }
  Status PollFetch(uint32_t slot, bool* done) override {
    const Mailbox::Mode mode = box_->mode;
    if (mode == Mailbox::Mode::kBroken) return Status::Unavailable("the fetch broke");
    *done = mode == Mailbox::Mode::kAtOnce;
    const size_t at = slot * kSlotBytes;
    if (*done) std::memcpy(fetched_.data() + at, box_->slots.data() + at, kSlotBytes);
    return Status::Ok();
  }
  Status Scatter(uint32_t slot, std::span<const std::byte>,
                 std::span<const MemoryRange> to) override {
    return memory_->Scatter(fetched_.data() + slot * kSlotBytes, to);
  }

 private:
  PoolMemory* memory_;
  Mailbox* box_;
  std::vector<std::byte> fetched_ = std::vector<std::byte>(kSlots * kSlotBytes);
};

class Fetch : public testing::Test {
 protected:
  Fetch() {
    ServerSpec spec;
    EXPECT_TRUE(ListenTcp("127.0.0.1", 0, &spec.listener, &port_).ok());
    spec.transport = "mailbox";
    spec.new_plane = [this] { return std::make_unique<MailboxOwnerPlane>(&owner_.pool, &box_); };
    server_ = std::make_unique<LeaseServer>(std::move(spec), owner_.options);
    lease_ = owner_.Lease(Tables({2}, {}));
    block_ = owner_.pool.layout().bytes_per_block(0);
    local_.resize(block_);
    reader_ = std::make_unique<Reader>(
        [this](const TransportClientOptions& options, std::unique_ptr<TransportClient>* out) {
          ClientSpec client{
              "mailbox", [this](UniqueFd* fd) { return StartConnectTcp("127.0.0.1", port_, fd); },
              [this] { return std::make_unique<MailboxReaderPlane>(&HostPoolMemory(), &box_); }};
          *out = std::make_unique<LeaseClient>(std::move(client), options);
          return Status::Ok();
        },
        kKey, nullptr, milliseconds(200));
  }
  uint64_t StartRead(milliseconds limit) {
    const uint64_t tag = reader_->NextTag();
    reader_->client->Read(tag, lease_, 0, {RangeTo(2 * block_, local_.data(), block_)}, In(limit));
    return tag;
  }
  Status Read() { return reader_->Wait(StartRead(seconds(20))).status; }
  // Waits until so many fetches have begun.
  void AwaitFetches(int count) {
    const TimePoint deadline = In(kSlowMachine);
    while (box_.started < count && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(milliseconds(1));
    }
    ASSERT_GE(box_.started, count);
  }
  void ExpectContent() {
    const uint8_t* remote = owner_.pool.layer(0).data() + 2 * block_;
    EXPECT_EQ(std::memcmp(local_.data(), remote, block_), 0);
  }

  Mailbox box_;
  Owner owner_{"tcp"};
  uint16_t port_ = 0;
  std::unique_ptr<LeaseServer> server_;
  LeaseRef lease_;
  uint64_t block_ = 0;
  std::vector<uint8_t> local_;
  std::unique_ptr<Reader> reader_;
};

TEST_F(Fetch, BytesFetchedAtOnceArrive) {
  ASSERT_TRUE(Read().ok());
  ExpectContent();
}

TEST_F(Fetch, AFetchThatEndsLaterCompletesItsReadWhenWoken) {
  box_.Let(Mailbox::Mode::kHeld);
  const uint64_t tag = StartRead(seconds(60));
  AwaitFetches(1);
  box_.Let(Mailbox::Mode::kAtOnce);
  ASSERT_TRUE(reader_->Wait(tag).status.ok());
  ExpectContent();
}

TEST_F(Fetch, AFetchThatNeverEndsCostsItsDeadlineAndThenItsConnection) {
  ASSERT_TRUE(Read().ok());
  std::fill(local_.begin(), local_.end(), uint8_t{0xaa});
  box_.Let(Mailbox::Mode::kHeld);
  const TimePoint start = std::chrono::steady_clock::now();
  EXPECT_EQ(reader_->Wait(StartRead(milliseconds(100))).status.code(),
            StatusCode::kDeadlineExceeded);
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(5));
  // Asked for before the connection is given up, and over before its own deadline.
  EXPECT_EQ(Read().code(), StatusCode::kUnavailable);
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(10));
  EXPECT_EQ(local_, std::vector<uint8_t>(block_, 0xaa));
  box_.Let(Mailbox::Mode::kAtOnce);
  ASSERT_TRUE(Read().ok());
  ExpectContent();
}

TEST_F(Fetch, AFetchThatEndsAfterItsReadLandsInNobodysData) {
  box_.Let(Mailbox::Mode::kHeld);
  std::fill(local_.begin(), local_.end(), uint8_t{0xaa});
  const uint64_t cancelled = StartRead(seconds(60));
  AwaitFetches(1);
  reader_->client->Cancel(cancelled);
  EXPECT_EQ(reader_->Wait(cancelled).status.code(), StatusCode::kUnavailable);
  // Its slot is still taken: with two slots, one read can fetch beside it, and no second.
  const uint64_t second = StartRead(seconds(60));
  const uint64_t third = StartRead(seconds(60));
  AwaitFetches(2);
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_EQ(box_.started, 2);
  EXPECT_EQ(local_, std::vector<uint8_t>(block_, 0xaa));
  box_.Let(Mailbox::Mode::kAtOnce);
  ASSERT_TRUE(reader_->Wait(second).status.ok());
  ASSERT_TRUE(reader_->Wait(third).status.ok());
  ExpectContent();
}

TEST_F(Fetch, ABrokenFetchEndsItsReadWithTheReasonAndTheNextOneReconnects) {
  box_.Let(Mailbox::Mode::kBroken);
  const Status s = Read();
  EXPECT_EQ(s.code(), StatusCode::kUnavailable);
  EXPECT_NE(s.message().find("the fetch broke"), std::string::npos) << s.message();
  box_.Let(Mailbox::Mode::kAtOnce);
  ASSERT_TRUE(Read().ok());
  ExpectContent();
}

}  // namespace
}  // namespace dlcore::testing_harness

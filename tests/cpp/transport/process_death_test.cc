#include <array>
#include <cstring>
#include <string_view>

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/cpp/transport/transport_harness.h"

// Real processes, really killed and really frozen.
namespace dlcore::testing_harness {
namespace {

// What a reader must know of an owner in another process.
struct Invitation {
  char endpoint[200] = {};
  LeaseRef lease;
  uint64_t block_bytes = 0;
};

LeaseBlocks AllBlocks() {
  LeaseBlocks blocks(2);
  for (int32_t i = 0; i < 32; ++i) blocks[0].emplace_back(i);
  return blocks;
}

Owner::Settings LargeBlocks() {
  Owner::Settings settings;
  settings.layout.groups[0].bytes_per_head = 8192;  // 512 KiB blocks
  return settings;
}

// This binary again, running one of the disabled tests below: a GPU's driver
// does not follow into a forked child. Whatever `about` holds comes in by a pipe.
class Child {
 public:
  Child(const char* test, std::string_view about) {
    int to_child[2];
    int from_child[2];
    EXPECT_EQ(pipe(to_child), 0);
    EXPECT_EQ(pipe(from_child), 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(to_child[0], STDIN_FILENO);
      dup2(from_child[1], STDOUT_FILENO);
      const std::string filter = std::string("--gtest_filter=ChildProcess.DISABLED_") + test;
      execl("/proc/self/exe", "transport_tests", filter.c_str(), "--gtest_brief=1",
            "--gtest_also_run_disabled_tests", nullptr);
      _exit(127);
    }
    close(to_child[0]);
    close(from_child[1]);
    EXPECT_EQ(write(to_child[1], about.data(), about.size()), static_cast<ssize_t>(about.size()));
    close(to_child[1]);
    output_ = UniqueFd(from_child[0]);
  }
  ~Child() {
    Signal(SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  void Signal(int number) const { kill(pid_, number); }
  // What it answers, behind what the test framework prints.
  template <class T>
  T Answer() {
    std::string text;
    T answer;
    char c = 0;
    while (text.find(kMark) == std::string::npos && read(output_.get(), &c, 1) == 1) text += c;
    EXPECT_NE(text.find(kMark), std::string::npos) << text;
    std::array<std::byte, sizeof(T)> bytes{};
    EXPECT_EQ(read(output_.get(), bytes.data(), sizeof(T)), static_cast<ssize_t>(sizeof(T)));
    std::memcpy(&answer, bytes.data(), sizeof(T));
    return answer;
  }

  static constexpr std::string_view kMark = "--- answer ---";

 private:
  pid_t pid_ = -1;
  UniqueFd output_;
};

template <class T>
void AnswerParent(const T& answer) {
  std::string text(Child::kMark);
  text.append(reinterpret_cast<const char*>(&answer), sizeof(T));
  ASSERT_EQ(write(STDOUT_FILENO, text.data(), text.size()), static_cast<ssize_t>(text.size()));
}

TEST(ChildProcess, DISABLED_Serves) {
  char transport[64] = {};
  ASSERT_GT(read(STDIN_FILENO, transport, sizeof(transport) - 1), 0);
  Owner owner(transport, LargeBlocks());
  Invitation invitation;
  invitation.lease = owner.Lease(AllBlocks());
  invitation.block_bytes = owner.pool.layout().bytes_per_block(0);
  owner.server->endpoint().copy(invitation.endpoint, sizeof(invitation.endpoint) - 1);
  AnswerParent(invitation);
  while (true) pause();
}

TEST(ChildProcess, DISABLED_ReadsWithoutEnd) {
  Invitation invitation;
  ASSERT_EQ(read(STDIN_FILENO, &invitation, sizeof(invitation)),
            static_cast<ssize_t>(sizeof(invitation)));
  Reader reader(invitation.endpoint);
  Bytes local(32 * invitation.block_bytes);
  for (int round = 0;; ++round) {
    const Status s =
        reader.Read(invitation.lease, 0, {RangeTo(0, local.data(), local.size())}, seconds(60));
    ASSERT_TRUE(s.ok()) << s.message();
    if (round == 3) AnswerParent(round);
  }
}

class ProcessDeath : public testing::TestWithParam<std::string> {
 protected:
  Child owner_{"Serves", GetParam()};
  Invitation invitation_ = owner_.Answer<Invitation>();
  Reader reader_{invitation_.endpoint, kKey, nullptr, milliseconds(200)};
  Bytes local_ = Bytes(32 * invitation_.block_bytes);

  // Reads of all blocks, under way until the returned tags have ended.
  std::vector<uint64_t> StartReads(int count, milliseconds limit) {
    std::vector<uint64_t> tags;
    for (int i = 0; i < count; ++i) {
      tags.push_back(reader_.NextTag());
      reader_.client->Read(tags.back(), invitation_.lease, 0,
                           {RangeTo(0, local_.data(), local_.size())}, In(limit));
    }
    return tags;
  }
};

TEST_P(ProcessDeath, KilledMidReadIsNoticedAtOnce) {
  const std::vector<uint64_t> tags = StartReads(400, seconds(120));  // 6.4 GiB
  ASSERT_TRUE(reader_.Wait(tags.front(), seconds(60)).status.ok());
  owner_.Signal(SIGKILL);
  const TimePoint start = std::chrono::steady_clock::now();
  int failed = 0;
  for (size_t i = 1; i < tags.size(); ++i) {
    const Status s = reader_.Wait(tags[i]).status;
    if (s.ok()) continue;  // it had arrived
    EXPECT_EQ(s.code(), StatusCode::kUnavailable) << s.message();
    ++failed;
  }
  EXPECT_GT(failed, 0) << "killed in the middle";
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(10));
}

TEST_P(ProcessDeath, FrozenOwnerCostsADeadlineAndThawedOneServesAgain) {
  ASSERT_TRUE(reader_.Wait(StartReads(1, seconds(60)).front(), seconds(60)).status.ok());
  owner_.Signal(SIGSTOP);
  const TimePoint start = std::chrono::steady_clock::now();
  for (const uint64_t tag : StartReads(3, milliseconds(300))) {
    EXPECT_EQ(reader_.Wait(tag).status.code(), StatusCode::kDeadlineExceeded);
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, seconds(5));
  owner_.Signal(SIGCONT);
  const TimePoint give_up = In(seconds(20));
  Status s = Status::Unavailable("not tried");
  while (!s.ok() && std::chrono::steady_clock::now() < give_up) {
    s = reader_.Wait(StartReads(1, seconds(10)).front()).status;
  }
  EXPECT_TRUE(s.ok()) << s.message();
}

class ReaderDeath : public testing::TestWithParam<std::string> {};

TEST_P(ReaderDeath, KilledMidReadLeavesTheOwnerWell) {
  Owner owner(GetParam(), LargeBlocks());
  Invitation invitation;
  invitation.lease = owner.Lease(AllBlocks());
  invitation.block_bytes = owner.pool.layout().bytes_per_block(0);
  owner.server->endpoint().copy(invitation.endpoint, sizeof(invitation.endpoint) - 1);
  const char* const bytes = reinterpret_cast<const char*>(&invitation);
  for (int round = 0; round < 3; ++round) {
    Child reader("ReadsWithoutEnd", std::string_view(bytes, sizeof(invitation)));
    EXPECT_EQ(reader.Answer<int>(), 3);
    reader.Signal(SIGKILL);
  }
  Reader survivor(owner.server->endpoint());
  Bytes local(32 * invitation.block_bytes);
  const Status s = survivor.Read(invitation.lease, 1, {RangeTo(0, local.data(), local.size())});
  ASSERT_TRUE(s.ok()) << s.message();
  EXPECT_EQ(local, owner.pool.layer(1));
  EXPECT_TRUE(owner.leases.Release(invitation.lease).ok());
  for (int i = 0; i < 100 && owner.returned == 0; ++i) {
    std::this_thread::sleep_for(milliseconds(20));
  }
  EXPECT_EQ(owner.returned, 1) << "no dead reader pins the lease";
}

INSTANTIATE_TEST_SUITE_P(Transports, ReaderDeath, testing::ValuesIn(AvailableTransports()),
                         [](const auto& param) { return param.param; });
INSTANTIATE_TEST_SUITE_P(Transports, ProcessDeath, testing::ValuesIn(AvailableTransports()),
                         [](const auto& param) { return param.param; });

}  // namespace
}  // namespace dlcore::testing_harness

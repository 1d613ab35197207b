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

// An owner in a child process. Forked while this process has no other thread.
class OwnerProcess {
 public:
  explicit OwnerProcess(const std::string& transport) {
    int pipe_fds[2];
    EXPECT_EQ(pipe(pipe_fds), 0);
    pid_ = fork();
    if (pid_ == 0) Serve(transport, pipe_fds[1]);
    close(pipe_fds[1]);
    EXPECT_EQ(read(pipe_fds[0], &invitation, sizeof(invitation)),
              static_cast<ssize_t>(sizeof(invitation)));
    close(pipe_fds[0]);
  }
  ~OwnerProcess() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  void Signal(int number) const { kill(pid_, number); }

  Invitation invitation;

 private:
  [[noreturn]] static void Serve(const std::string& transport, int fd) {
    Owner::Settings settings;
    settings.layout.groups[0].bytes_per_head = 8192;  // 512 KiB blocks
    Owner owner(transport, settings);
    Invitation invitation;
    LeaseBlocks blocks(2);
    for (int32_t i = 0; i < 32; ++i) blocks[0].emplace_back(i);
    invitation.lease = owner.Lease(blocks);
    invitation.block_bytes = owner.pool.layout().bytes_per_block(0);
    owner.server->endpoint().copy(invitation.endpoint, sizeof(invitation.endpoint) - 1);
    if (write(fd, &invitation, sizeof(invitation)) != sizeof(invitation)) _exit(1);
    while (true) pause();
  }

  pid_t pid_ = -1;
};

class ProcessDeath : public testing::TestWithParam<std::string> {
 protected:
  OwnerProcess owner_{GetParam()};
  Reader reader_{owner_.invitation.endpoint, kKey, nullptr, milliseconds(200)};
  Bytes local_ = Bytes(32 * owner_.invitation.block_bytes);

  // Reads of all blocks, under way until the returned tags have ended.
  std::vector<uint64_t> StartReads(int count, milliseconds limit) {
    std::vector<uint64_t> tags;
    for (int i = 0; i < count; ++i) {
      tags.push_back(reader_.NextTag());
      reader_.client->Read(tags.back(), owner_.invitation.lease, 0,
                           {RangeTo(0, local_.data(), local_.size())}, In(limit));
    }
    return tags;
  }
};

TEST_P(ProcessDeath, KilledMidReadIsNoticedAtOnce) {
  const std::vector<uint64_t> tags = StartReads(40, seconds(120));  // 640 MiB
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

INSTANTIATE_TEST_SUITE_P(Transports, ProcessDeath, testing::ValuesIn(ForkableTransports()),
                         [](const auto& param) { return param.param; });

}  // namespace
}  // namespace dlcore::testing_harness

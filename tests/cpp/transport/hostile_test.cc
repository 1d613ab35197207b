#include <random>
#include <thread>

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/cpp/transport/transport_harness.h"
#include "transport/frame_socket.h"
#include "transport/socket.h"
#include "transport/wire.h"

// Random bytes, hostile headers and hostile bodies, before and after the
// handshake. The law: the owner lives, serves others, and nothing outside a
// lease is ever gathered.
namespace dlcore::testing_harness {
namespace {

// Together 100,000 and more at every port.
constexpr int kRawMessages = 90'000;
int AuthenticatedMessages(const std::string& transport) {
  const bool emulated = transport == "rdma" || transport == "dlslime";  // each a round trip there
  return emulated ? 15'000 : 60'000;
}

// A plain socket to the port or path behind any endpoint.
UniqueFd RawConnect(const std::string& endpoint) {
  UniqueFd fd;
  const std::string address(EndpointAddress(endpoint));
  std::string host;
  uint16_t port = 0;
  Status s;
  if (ParseHostPort(address, &host, &port)) {
    s = StartConnectTcp(host, port, &fd);
  } else {
    s = StartConnectUnix(address.substr(address.find('/')), &fd);
    while (s.code() == StatusCode::kResourceExhausted) {  // strangers outrun the owner's thread
      std::this_thread::sleep_for(std::chrono::microseconds(50));
      s = StartConnectUnix(address.substr(address.find('/')), &fd);
    }
  }
  EXPECT_TRUE(s.ok()) << s.message();
  return fd;
}

Blob RandomBytes(std::mt19937_64* engine, size_t size) {
  Blob bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>((*engine)());
  return bytes;
}

// A frame that is wrong in one of many ways.
Blob HostileFrame(std::mt19937_64* engine) {
  std::mt19937_64& random = *engine;
  const auto type = static_cast<FrameType>(1 + random() % 9);
  const size_t length = random() % 2 == 0 ? random() % 64 : random() % 400;
  Blob frame;
  EncodeHeader({type, static_cast<uint32_t>(length), random()}, &frame);
  const Blob body = RandomBytes(engine, length);
  switch (random() % 6) {
    case 0:  // only noise
      return RandomBytes(engine, 1 + random() % 80);
    case 1:  // an absurd length
      for (size_t i = 8; i < 12; ++i) frame[i] = static_cast<std::byte>(random() | 0x80);
      break;
    case 2:  // one header byte wrong
      frame[random() % frame.size()] = static_cast<std::byte>(random());
      break;
    case 3:  // cut short
      frame.resize(1 + random() % frame.size());
      return frame;
    default:
      break;
  }
  frame.insert(frame.end(), body.begin(), body.end());
  return frame;
}

class Hostile : public testing::TestWithParam<std::string> {};

// The next frame, of this type; false once the owner has closed.
bool Await(FrameSocket* socket, FrameType type, Frame* out) {
  socket->Allow({type});
  const TimePoint deadline = In(kSlowMachine);
  bool found = false;
  while (!found && std::chrono::steady_clock::now() < deadline) {
    if (!socket->Flush().ok()) return false;
    const Status received = socket->Receive(64 * 1024);
    if (!socket->Next(out, &found).ok()) return false;
    if (!found && !received.ok()) return false;
    if (!found) WaitForSocket(socket->fd(), POLLIN, -1, deadline);
  }
  EXPECT_TRUE(found) << "neither an answer nor the end";
  return found;
}

TEST_P(Hostile, StrangersCannotHurtTheOwner) {
  Owner owner(GetParam());
  const LeaseRef lease = owner.Lease(Tables({2}, {}));
  owner.pool.AllowOnly(Tables({2}, {}));
  std::mt19937_64 engine(3);
  int sent = 0;
  while (sent < kRawMessages) {
    const UniqueFd fd = RawConnect(owner.server->endpoint());
    for (int i = 0; i < 40; ++i, ++sent) {
      const Blob frame = HostileFrame(&engine);
      // The owner may have closed already; that is its right.
      if (send(fd.get(), frame.data(), frame.size(), MSG_NOSIGNAL) < 0) {
        ++sent;
        break;
      }
    }
  }
  Reader reader(owner.server->endpoint());
  Bytes local(owner.pool.layout().bytes_per_block(0));
  EXPECT_TRUE(reader.Read(lease, 0, {RangeTo(2 * local.size(), local.data(), local.size())}).ok());
  EXPECT_EQ(owner.pool.violations(), 0);
}

TEST_P(Hostile, AHandshakeThatNeverComesIsNotWaitedFor) {
  Owner owner(GetParam());
  TransportServerOptions options = owner.options;
  options.handshake_timeout = milliseconds(100);
  std::unique_ptr<TransportServer> server;
  ASSERT_TRUE(NewTransportServer(GetParam(), options, &server).ok());
  const UniqueFd fd = RawConnect(server->endpoint());
  const TimePoint deadline = In(seconds(5));
  char buffer[256];
  ssize_t n = -1;
  while (n != 0 && std::chrono::steady_clock::now() < deadline) {
    WaitForSocket(fd.get(), POLLIN, -1, deadline);
    n = recv(fd.get(), buffer, sizeof(buffer), 0);  // the challenge, then the end
  }
  EXPECT_EQ(n, 0);
}

TEST_P(Hostile, AuthenticatedReadersReadOnlyWhatIsLeased) {
  Owner::Settings settings;
  settings.ttl = seconds(600);
  Owner owner(GetParam(), settings);
  const LeaseRef lease = owner.Lease(Tables({2, 3, 9}, {4}));
  owner.pool.AllowOnly(Tables({2, 3, 9}, {4}));
  std::mt19937_64 engine(9);
  std::mt19937_64 spoiler(10);  // used in the client's thread
  std::atomic<int> spoiled{0};
  // Flips bytes of everything a correct client sends after its hello, most of
  // all in the fields that name the lease's memory. A wrong count of ranges ends
  // the connection, so that field is spared most of the time.
  Filter filter([&](FrameType type, std::vector<std::byte>* body) {
    if (type == FrameType::kHello || body->empty()) return FrameFault::kNone;
    ++spoiled;
    const size_t first = type == FrameType::kRead && spoiler() % 4 != 0 ? 16 : 0;
    for (uint64_t flips = spoiler() % 4; flips > 0; --flips) {
      const size_t at = first + spoiler() % (body->size() - first);
      const bool is_count = type == FrameType::kRead && at >= 28 && at < 32;
      if (is_count && spoiler() % 50 != 0) continue;
      (*body)[at] = static_cast<std::byte>(spoiler());
    }
    if (spoiler() % 500 == 0) body->resize(spoiler() % body->size());  // ends the connection
    return FrameFault::kNone;
  });
  Reader reader(owner.server->endpoint(), kKey, &filter);
  const uint64_t block = owner.pool.layout().bytes_per_block(0);
  Bytes local(4 * block);
  int succeeded = 0;
  while (spoiled < AuthenticatedMessages(GetParam())) {
    std::vector<uint64_t> tags;
    for (int i = 0; i < 64; ++i) {
      tags.push_back(reader.NextTag());
      const uint64_t offset = (2 + engine() % 2) * block + engine() % 64;
      reader.client->Read(tags.back(), lease, static_cast<int32_t>(engine() % 4),
                          {RangeTo(offset, local.data(), 1 + engine() % 256)}, In(seconds(2)));
    }
    for (const uint64_t tag : tags) succeeded += reader.Wait(tag).status.ok() ? 1 : 0;
  }
  EXPECT_GT(succeeded, 0);
  EXPECT_EQ(owner.pool.violations(), 0);
  Reader honest(owner.server->endpoint());
  EXPECT_TRUE(honest.Read(lease, 0, {RangeTo(2 * block, local.data(), block)}).ok());
}

// Holders of the key that offer nonsense where a window or a queue pair is due.
TEST_P(Hostile, NonsenseOffersCannotHurtTheOwner) {
  Owner owner(GetParam());
  const LeaseRef lease = owner.Lease(Tables({2}, {}));
  std::mt19937_64 engine(11);
  for (int i = 0; i < 120; ++i) {
    FrameSocket socket(RawConnect(owner.server->endpoint()), nullptr);
    Frame frame;
    ChallengeMessage challenge;
    ASSERT_TRUE(Await(&socket, FrameType::kChallenge, &frame));
    ASSERT_TRUE(Decode(frame.body, &challenge));
    HelloMessage hello;
    hello.blob = RandomBytes(&engine, i % 60);
    if (hello.blob.size() >= 4 && i >= 60) {  // ends in a number of slots that may pass
      std::fill(hello.blob.end() - 4, hello.blob.end(), std::byte{0});
      *(hello.blob.end() - 4) = std::byte{1};
    }
    hello.nonce = RandomNonce();
    hello.mac =
        MakeProof(kKey, AuthRole::kReader, GetParam(), challenge.nonce, hello.nonce, hello.blob);
    socket.Queue(FrameType::kHello, 0, Encode(hello));
    (void)Await(&socket, FrameType::kWelcome, &frame);
  }
  Reader reader(owner.server->endpoint());
  EXPECT_TRUE(reader.Open(lease).status.ok());
}

TEST(Backlog, AReaderWaitsUntilTheOwnerLetsItIn) {
  UniqueFd listener;
  std::string path;
  ASSERT_TRUE(ListenUnix(testing::TempDir(), &listener, &path).ok());
  std::vector<UniqueFd> crowd;
  Status s;
  while (s.ok() && crowd.size() < 10'000) {
    s = StartConnectUnix(path, &crowd.emplace_back());
  }
  ASSERT_EQ(s.code(), StatusCode::kResourceExhausted);
  crowd.pop_back();
  Reader reader("shm://" + HostId() + path);
  const uint64_t tag = reader.NextTag();
  reader.client->OpenLease(tag, {0, 0}, {}, In(seconds(20)));
  std::this_thread::sleep_for(milliseconds(20));
  std::vector<TransportEvent> events;
  reader.client->Poll(&events);
  EXPECT_TRUE(events.empty());
  std::vector<UniqueFd> accepted;
  const TimePoint deadline = In(seconds(10));
  while (accepted.size() <= crowd.size() && WaitForSocket(listener.get(), POLLIN, -1, deadline)) {
    accepted.emplace_back(accept(listener.get(), nullptr, nullptr));
  }
  EXPECT_EQ(accepted.size(), crowd.size() + 1);
  unlink(path.c_str());
}

TEST(Wire, DecodersSurviveAnyBytes) {
  std::mt19937_64 engine(1);
  for (int i = 0; i < 200'000; ++i) {
    const Blob body = RandomBytes(&engine, engine() % 200);
    HelloMessage hello;
    WelcomeMessage welcome;
    OpenLeaseMessage open;
    LeaseInfoMessage info;
    ReadMessage read;
    ReadReplyMessage reply;
    ReleaseMessage release;
    (void)Decode(body, &hello);
    (void)Decode(body, &welcome);
    (void)Decode(body, &open);
    (void)Decode(body, &read);
    (void)Decode(body, &reply);
    (void)Decode(body, &release);
    if (Decode(body, &info) && info.status.ok()) {
      EXPECT_TRUE(info.info.layout.Validate().ok());
    }
  }
}

TEST(Wire, LeaseInfoSurvivesTheTripAndEveryCut) {
  LeaseInfoMessage message;
  message.info = {MixedLayout(32), Tables({1, 2, 31}, {4}), 40, {3, 2}};
  const Blob body = Encode(message);
  LeaseInfoMessage back;
  ASSERT_TRUE(Decode(body, &back));
  EXPECT_EQ(back.info.layout, message.info.layout);
  EXPECT_EQ(back.info.blocks, message.info.blocks);
  EXPECT_EQ(back.info.num_tokens, 40);
  EXPECT_EQ(back.info.done, (LeaseProgress{3, 2}));
  for (size_t cut = 0; cut < body.size(); ++cut) {
    EXPECT_FALSE(Decode(std::span(body).first(cut), &back)) << cut;
  }
}

TEST(Wire, ProofsDifferByEveryInput) {
  const Nonce a = RandomNonce();
  const Nonce b = RandomNonce();
  const Blob blob(4);
  const Sha256Digest proof = MakeProof(kKey, AuthRole::kReader, "tcp", a, b, blob);
  EXPECT_EQ(proof, MakeProof(kKey, AuthRole::kReader, "tcp", a, b, blob));
  EXPECT_NE(proof, MakeProof("another", AuthRole::kReader, "tcp", a, b, blob));
  EXPECT_NE(proof, MakeProof(kKey, AuthRole::kOwner, "tcp", a, b, blob));
  EXPECT_NE(proof, MakeProof(kKey, AuthRole::kReader, "shm", a, b, blob));
  EXPECT_NE(proof, MakeProof(kKey, AuthRole::kReader, "tcp", b, a, blob));
  EXPECT_NE(proof, MakeProof(kKey, AuthRole::kReader, "tcp", a, b, Blob(5)));
}

INSTANTIATE_TEST_SUITE_P(Transports, Hostile, testing::ValuesIn(AvailableTransports()),
                         [](const auto& param) { return param.param; });

}  // namespace
}  // namespace dlcore::testing_harness

#include "transport/registry.h"

#include "gtest/gtest.h"

namespace dlcore {
namespace {

const std::string kHere = HostId();

Status Choose(std::vector<std::string> offered, std::string_view forced, std::string* out) {
  return ChooseEndpoint(offered, forced, false, out);
}

TEST(Registry, SharedMemoryIsChosenOnOneHostAndTcpBetweenHosts) {
  std::string chosen;
  ASSERT_TRUE(Choose({"tcp://10.0.0.2:1", "shm://" + kHere + "/tmp/x"}, "", &chosen).ok());
  EXPECT_EQ(chosen, "shm://" + kHere + "/tmp/x");
  ASSERT_TRUE(Choose({"tcp://10.0.0.2:1", "shm://elsewhere/tmp/x"}, "", &chosen).ok());
  EXPECT_EQ(chosen, "tcp://10.0.0.2:1");
}

TEST(Registry, ForcedTransportIsUsedOrRefusedWithItsReason) {
  std::string chosen;
  ASSERT_TRUE(Choose({"tcp://h:1", "shm://" + kHere + "/x"}, "tcp", &chosen).ok());
  EXPECT_EQ(chosen, "tcp://h:1");
  const Status elsewhere = Choose({"shm://elsewhere/x", "tcp://h:1"}, "shm", &chosen);
  EXPECT_EQ(elsewhere.code(), StatusCode::kUnavailable);
  EXPECT_NE(elsewhere.message().find("another host"), std::string::npos);
  EXPECT_NE(Choose({"tcp://h:1"}, "shm", &chosen).message().find("not offered"), std::string::npos);
  EXPECT_NE(Choose({"tcp://h:1"}, "pigeon", &chosen).message().find("'pigeon'"), std::string::npos);
}

TEST(Registry, UnknownNamesListWhatThereIs) {
  const TransportFactory* factory = nullptr;
  const Status s = FindTransport("pigeon", &factory);
  EXPECT_EQ(s.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(s.message().find("tcp"), std::string::npos);
}

#ifndef DLCORE_RDMA
TEST(Registry, NamesLeftOutOfTheBuildSayWhatToInstall) {
  const TransportFactory* factory = nullptr;
  for (const char* name : {"rdma", "dlslime"}) {
    const Status s = FindTransport(name, &factory);
    EXPECT_EQ(s.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(s.message().find("libibverbs-dev"), std::string::npos) << s.message();
  }
}
#elif !defined(DLCORE_DLSLIME)
TEST(Registry, ADlslimeLeftOutOfTheBuildSaysWhatToInstall) {
  std::unique_ptr<TransportServer> server;
  const Status s = NewTransportServer("dlslime", {}, &server);
  EXPECT_EQ(s.code(), StatusCode::kUnavailable);
  EXPECT_NE(s.message().find("build dlcore again"), std::string::npos) << s.message();
}
#endif

TEST(Registry, MalformedEndpointsAreRefused) {
  TransportClientOptions options;
  std::unique_ptr<TransportClient> client;
  for (const char* endpoint : {"", "tcp", "tcp://", "tcp://host", "tcp://:1", "tcp://h:0",
                               "tcp://h:99999", "tcp://h:1x", "shm://nopath"}) {
    EXPECT_FALSE(NewTransportClient(endpoint, options, &client).ok()) << endpoint;
  }
}

}  // namespace
}  // namespace dlcore

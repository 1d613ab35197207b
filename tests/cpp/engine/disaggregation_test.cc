// Two engines, their threads and a transport: KV moves while its prompt is computed.
#include <initializer_list>
#include <random>
#include <set>

#include "tests/cpp/engine/pd_harness.h"
#include "tests/cpp/sched/reference.h"
#include "transport/registry.h"

namespace dlcore::testing {
namespace {

constexpr int32_t kNumLayers = 3;
constexpr uint64_t kTokenBytes = kNumLayers * sizeof(uint64_t);

// On the engine's own thread, or pipelined on a fake GPU.
struct Setting {
  std::string transport;
  bool pipelined = false;
};

class TwoEngines : public ::testing::TestWithParam<Setting> {
 protected:
  PdNode::Settings Node(PdRole role) const {
    PdNode::Settings settings;
    settings.role = role;
    settings.transport = GetParam().transport;
    settings.pipelined = GetParam().pipelined;
    settings.num_layers = kNumLayers;
    settings.block_size = role == PdRole::kPrefill ? 4 : 8;
    return settings;
  }

  static Request MakeRequest(uint64_t id, int32_t prompt_len, int32_t max_tokens) {
    Request request;
    request.id = RequestId(id);
    for (int32_t i = 0; i < prompt_len; ++i) {
      request.prompt.push_back(
          static_cast<TokenId>(Mix(id, static_cast<uint64_t>(i)) % static_cast<uint64_t>(kVocab)));
    }
    request.sampling.temperature = id % 2 == 0 ? 0.0f : 0.7f;
    request.sampling.seed = id;
    request.sampling.max_tokens = max_tokens;
    request.sampling.ignore_eos = true;
    return request;
  }
  static Request PrefillOf(Request request) {
    request.sampling.max_tokens = 1;
    request.hold_kv = true;
    return request;
  }
  static void ExpectAnswer(PdNode& node, const Request& request) {
    const Answer want = Reference(node.options()).Run(request, nullptr);
    const PdOutput& got = node.output(request.id.value);
    EXPECT_EQ(got.tokens, want.tokens) << "request " << request.id.value << " " << got.error;
    EXPECT_EQ(got.reason, want.reason);
  }
  // The lease's name, as soon as the engine tells it.
  static KvLease LeaseOf(PdNode& node, uint64_t id) {
    EXPECT_TRUE(node.PollUntil([&] { return node.output(id).lease.has_value(); }));
    return *node.output(id).lease;
  }
};

// One request, handed over while its prompt is computed.
class HandOver : public TwoEngines {
 protected:
  explicit HandOver(int32_t prompt_len) : request_(MakeRequest(1, prompt_len, 12)) {}

  void Begin() {
    EXPECT_TRUE(prefill_.engine().Submit(PrefillOf(request_)).ok());
    request_.kv_source = PdNode::Source(prefill_, LeaseOf(prefill_, 1));
    EXPECT_TRUE(decode_.engine().Submit(request_).ok());
  }
  void ExpectDecodeAnswers() {
    EXPECT_TRUE(decode_.PollUntil([&] { return decode_.finished(1); }));
    ExpectAnswer(decode_, request_);
    EXPECT_TRUE(prefill_.AllBlocksReturn());
    EXPECT_TRUE(decode_.AllBlocksReturn());
  }

  Request request_;
  PdNode prefill_{Node(PdRole::kPrefill)};
  PdNode decode_{Node(PdRole::kDecode)};
};

// The prefill engine stands still in the middle of the prompt until bytes were read.
class HeldPrefill : public HandOver {
 protected:
  static constexpr int32_t kPromptLen = 64;  // four chunks

  HeldPrefill() : HandOver(kPromptLen) {
    prefill_.gate().CloseAfter(2);
    Begin();
    EXPECT_TRUE(WaitFor([&] { return prefill_.engine().Stats().leases.early_bytes > 0; }));
    EXPECT_FALSE(prefill_.finished(1));
  }
};

TEST_P(HeldPrefill, WhatIsWrittenMovesBeforeTheRestIsComputed) {
  const uint64_t early = prefill_.engine().Stats().leases.early_bytes;
  EXPECT_LE(early, uint64_t{2 * 16 * kTokenBytes});
  EXPECT_EQ(decode_.engine().Stats().num_migrating, 1);
  prefill_.gate().Open();
  ExpectDecodeAnswers();
  const EngineStats stats = decode_.engine().Stats();
  EXPECT_EQ(stats.pulls.completed, 1U);
  EXPECT_EQ(stats.pulls.bytes, (kPromptLen - 1) * kTokenBytes);
  EXPECT_GE(stats.pulls.early_bytes, early);
  const LeaseCounters leases = prefill_.engine().Stats().leases;
  EXPECT_EQ(leases.granted, 1U);
  EXPECT_EQ(leases.released, 1U);
}

TEST_P(HeldPrefill, APrefillThatIsAbortedCostsARecompute) {
  prefill_.engine().Abort(RequestId(1));
  prefill_.gate().Open();
  ExpectDecodeAnswers();
  EXPECT_EQ(decode_.engine().Stats().pulls.failed, 1U);
  EXPECT_EQ(prefill_.engine().Stats().leases.aborted, 1U);
}

TEST_P(HeldPrefill, APrefillEngineThatEndsCostsARecompute) {
  prefill_.Stop();
  EXPECT_TRUE(decode_.PollUntil([&] { return decode_.finished(1); }));
  ExpectAnswer(decode_, request_);
  EXPECT_TRUE(decode_.AllBlocksReturn());
}

TEST_P(HeldPrefill, AReaderThatIsAbortedReturnsTheBlocksOfBothSides) {
  decode_.engine().Abort(RequestId(1));
  EXPECT_TRUE(decode_.AllBlocksReturn());
  EXPECT_TRUE(WaitFor([&] { return prefill_.engine().Stats().leases.released == 1; }));
  prefill_.gate().Open();
  EXPECT_TRUE(prefill_.PollUntil([&] { return prefill_.finished(1); }));
  EXPECT_TRUE(prefill_.AllBlocksReturn());
  EXPECT_EQ(decode_.engine().Stats().pulls.aborted, 1U);
}

// The prefill engine stands still in the middle of the step that writes all of the prompt.
class HeldStep : public HandOver {
 protected:
  static constexpr int32_t kPromptLen = 16;  // one chunk
  static constexpr uint64_t kLayerBytes = (kPromptLen - 1) * sizeof(uint64_t);

  HeldStep() : HandOver(kPromptLen) {}

  void Hold(int32_t layers_done) {
    prefill_.layer_gate().CloseAfter(layers_done);
    Begin();
    ASSERT_FALSE(HasFailure());
    const uint64_t bytes = static_cast<uint64_t>(layers_done) * kLayerBytes;
    ASSERT_TRUE(WaitFor([&] { return Served() >= bytes; }));
  }
  uint64_t Served() { return prefill_.engine().Stats().leases.bytes; }
};

TEST_P(HeldStep, LayersMoveAsTheyAreWrittenAndNoSooner) {
  ASSERT_NO_FATAL_FAILURE(Hold(2));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(Served(), 2 * kLayerBytes);
  EXPECT_FALSE(prefill_.finished(1));
  prefill_.layer_gate().Open();
  ExpectDecodeAnswers();
  EXPECT_TRUE(prefill_.PollUntil([&] { return prefill_.finished(1); }));
  const MigrationCounters pulls = decode_.engine().Stats().pulls;
  EXPECT_EQ(pulls.completed, 1U);
  EXPECT_EQ(pulls.bytes, kNumLayers * kLayerBytes);
  EXPECT_EQ(pulls.early_bytes, 2 * kLayerBytes);
}

// Where the thread that takes aborts does not run the step itself.
class HeldPipelinedStep : public HeldStep {};

TEST_P(HeldPipelinedStep, APrefillThatIsAbortedInItCostsARecompute) {
  ASSERT_NO_FATAL_FAILURE(Hold(2));
  prefill_.engine().Abort(RequestId(1));
  EXPECT_TRUE(WaitFor([&] { return prefill_.engine().Stats().leases.aborted == 1; }));
  prefill_.layer_gate().Open();
  ExpectDecodeAnswers();
  EXPECT_EQ(decode_.engine().Stats().pulls.failed, 1U);
  EXPECT_EQ(Served(), 2 * kLayerBytes);
}

TEST_P(HeldStep, AReaderThatIsAbortedReturnsTheBlocksOfBothSides) {
  ASSERT_NO_FATAL_FAILURE(Hold(1));
  decode_.engine().Abort(RequestId(1));
  EXPECT_TRUE(decode_.AllBlocksReturn());
  EXPECT_TRUE(WaitFor([&] { return prefill_.engine().Stats().leases.released == 1; }));
  prefill_.layer_gate().Open();
  EXPECT_TRUE(prefill_.PollUntil([&] { return prefill_.finished(1); }));
  EXPECT_TRUE(prefill_.AllBlocksReturn());
}

TEST_P(HeldStep, TheReaderAnswersBeforeTheStepThatWroteItsKvIsOver) {
  ASSERT_NO_FATAL_FAILURE(Hold(kNumLayers));
  EXPECT_TRUE(decode_.PollUntil([&] { return decode_.finished(1); }));
  EXPECT_TRUE(WaitFor([&] { return prefill_.engine().Stats().leases.released == 1; }));
  EXPECT_FALSE(prefill_.finished(1));
  prefill_.layer_gate().Open();
  ExpectDecodeAnswers();
  EXPECT_TRUE(prefill_.PollUntil([&] { return prefill_.finished(1); }));
  EXPECT_EQ(prefill_.output(1).reason, FinishReason::kLength);
}

TEST_P(HeldStep, TheLayersOfAStepAreNotTakenForThoseOfTheNext) {
  ASSERT_NO_FATAL_FAILURE(Hold(2));
  Request next = MakeRequest(2, kPromptLen, 12);
  ASSERT_TRUE(prefill_.engine().Submit(PrefillOf(next)).ok());
  prefill_.layer_gate().CloseAfter(2);  // the last layer, and the end of the step
  next.kv_source = PdNode::Source(prefill_, LeaseOf(prefill_, 2));
  ASSERT_TRUE(decode_.engine().Submit(next).ok());
  EXPECT_TRUE(prefill_.PollUntil([&] { return prefill_.finished(1); }));
  EXPECT_TRUE(WaitFor([&] { return prefill_.engine().Stats().leases.released == 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(Served(), kNumLayers * kLayerBytes);
  prefill_.layer_gate().CloseAfter(1);
  EXPECT_TRUE(WaitFor([&] { return Served() == (kNumLayers + 1) * kLayerBytes; }));
  prefill_.layer_gate().Open();
  EXPECT_TRUE(decode_.PollUntil([&] { return decode_.finished(2); }));
  ExpectAnswer(decode_, next);
  ExpectDecodeAnswers();
}

TEST_P(TwoEngines, OnlyTheStepThatRunsMayReportLayers) {
  PdNode node(Node(PdRole::kPrefill));
  EXPECT_EQ(node.engine().ReportLayers(1).code(), StatusCode::kInvalidArgument);
}

TEST_P(TwoEngines, AnAnswerThatThePromptEndsIsTheSame) {
  PdNode prefill(Node(PdRole::kPrefill));
  PdNode decode(Node(PdRole::kDecode));
  Request request = MakeRequest(2, 50, 20);
  const TokenId first = Reference(prefill.options()).Run(request, nullptr).tokens.front();
  request.sampling.stop_token_ids = {first};
  ASSERT_TRUE(prefill.engine().Submit(PrefillOf(request)).ok());
  request.kv_source = PdNode::Source(prefill, LeaseOf(prefill, 2));
  ASSERT_TRUE(decode.engine().Submit(request).ok());
  ASSERT_TRUE(decode.PollUntil([&] { return decode.finished(2); }));
  ExpectAnswer(decode, request);
  EXPECT_EQ(decode.output(2).reason, FinishReason::kStop);
  EXPECT_TRUE(prefill.AllBlocksReturn());
  EXPECT_TRUE(decode.AllBlocksReturn());
}

// Aborts of either side at any time, leases that nobody reads, and in the end a
// prefill engine that is gone.
TEST_P(TwoEngines, EveryRequestGetsThePlainAnswerAndEveryBlockReturns) {
  constexpr uint64_t kRequests = 120;
  PdNode::Settings settings = Node(PdRole::kPrefill);
  // Long enough for all that somebody reads, however slow the machine is.
  settings.lease_ttl = std::chrono::seconds(2);
  PdNode prefill(settings);
  PdNode decode(Node(PdRole::kDecode));
  std::mt19937 random(11);
  const auto chance = [&](uint32_t percent) { return random() % 100 < percent; };
  std::map<uint64_t, Request> asked;
  std::set<uint64_t> forwarded;
  std::set<uint64_t> given_up;
  uint64_t next = 1;
  const auto turn = [&] {
    if (next <= kRequests && asked.size() - forwarded.size() < 6) {
      const auto length = 1 + static_cast<int32_t>(random() % 70);
      asked[next] = MakeRequest(next, length, 1 + static_cast<int32_t>(random() % 16));
      ASSERT_TRUE(prefill.engine().Submit(PrefillOf(asked[next])).ok());
      ++next;
    }
    prefill.Poll();
    decode.Poll(0.001);
    for (auto& [id, request] : asked) {
      if (forwarded.contains(id)) continue;
      const PdOutput& out = prefill.output(id);
      if (!out.lease && out.reason == FinishReason::kNone) continue;
      if (out.lease && !chance(5)) request.kv_source = PdNode::Source(prefill, *out.lease);
      forwarded.insert(id);
      ASSERT_TRUE(decode.engine().Submit(request).ok());
      if (chance(10)) prefill.engine().Abort(RequestId(id));
      if (!chance(10)) continue;
      given_up.insert(id);
      decode.engine().Abort(RequestId(id));
    }
  };
  const auto all_done = [&] {
    return forwarded.size() == kRequests &&
           std::ranges::all_of(forwarded, [&](uint64_t id) { return decode.finished(id); });
  };
  ASSERT_TRUE(WaitFor([&] { return turn(), HasFatalFailure() || all_done(); }, 60));
  for (const auto& [id, request] : asked) {
    if (!given_up.contains(id)) ExpectAnswer(decode, request);
  }
  EXPECT_TRUE(prefill.AllBlocksReturn());
  EXPECT_TRUE(decode.AllBlocksReturn());
  const EngineStats pulls = decode.engine().Stats();
  EXPECT_EQ(pulls.num_migrating, 0);
  EXPECT_GT(pulls.pulls.completed, kRequests / 2);
  const LeaseCounters leases = prefill.engine().Stats().leases;
  EXPECT_EQ(leases.granted, leases.released + leases.aborted + leases.expired);
  EXPECT_GT(leases.granted, kRequests * 3 / 4);
}

// Every transport that reaches host memory here.
std::vector<Setting> Settings(std::initializer_list<bool> pipelined) {
  std::vector<Setting> settings;
  for (const TransportFactory* factory : Transports()) {
    if (factory->device_memory || !factory->available().ok()) continue;
    for (const bool each : pipelined) settings.push_back({std::string(factory->name), each});
  }
  return settings;
}
auto BothWays() { return ::testing::ValuesIn(Settings({false, true})); }
auto Pipelined() { return ::testing::ValuesIn(Settings({true})); }
std::string NameOf(const ::testing::TestParamInfo<Setting>& info) {
  return info.param.transport + (info.param.pipelined ? "Pipelined" : "");
}
INSTANTIATE_TEST_SUITE_P(Transports, TwoEngines, BothWays(), NameOf);
INSTANTIATE_TEST_SUITE_P(Transports, HeldStep, BothWays(), NameOf);
INSTANTIATE_TEST_SUITE_P(Transports, HeldPipelinedStep, Pipelined(), NameOf);
INSTANTIATE_TEST_SUITE_P(Transports, HeldPrefill, BothWays(), NameOf);

}  // namespace
}  // namespace dlcore::testing

// A prefill and a decode engine, with a transport between them that is late,
// fails and loses leases: every answer is the plain one, and every block returns.
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "tests/cpp/sched/reference.h"
#include "tests/cpp/sched/simulation.h"

namespace dlcore::testing {
namespace {

constexpr int32_t kVocab = 83;
constexpr int kScenes = 120;
constexpr int kStepsPerScene = 400;

class TwoEngines {
 public:
  explicit TwoEngines(uint32_t seed)
      : random_(seed),
        prefill_options_(RandomOptions()),
        prefill_(prefill_options_),
        decode_options_(RandomOptions()),
        decode_(decode_options_) {}

  void Run() {
    for (int i = 0; i < kStepsPerScene; ++i) {
      if (Chance(20)) SubmitOne();
      if (Chance(2)) Abort(prefill_);
      if (Chance(3)) Abort(decode_);
      Turn();
      if (::testing::Test::HasFatalFailure()) return;
    }
    for (int i = 0; i < 200000 && HasWork(); ++i) Turn();
    ASSERT_FALSE(HasWork()) << prefill_.scheduler().DebugString()
                            << decode_.scheduler().DebugString();
    ASSERT_EQ(prefill_.scheduler().Stats().num_lent, 0);
    prefill_.CheckBlocks();
    decode_.CheckBlocks();
    CheckAnswers();
  }

  int num_answers = 0;
  int num_failed = 0;
  int num_early_tokens = 0;
  SchedulerStats Stats() { return decode_.scheduler().Stats(); }
  SchedulerStats PrefillStats() { return prefill_.scheduler().Stats(); }

 private:
  struct Transfer {
    MigrationRequest pull;
    int turns_left = 0;  // that it takes when all is written
    Status status;
    int32_t pulled = 0;  // tokens before it are here
  };
  struct Lease {
    KvGrant grant;
    int32_t tokens_done = 0;
    bool early = false;          // the decode engine knows of it before it is filled
    int turns_left = 0;          // while it ends: of the last read in flight
    std::vector<uint64_t> read;  // while it ends: what that read must see
  };

  int32_t Pick(int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(random_);
  }
  bool Chance(int32_t percent) { return Pick(1, 100) <= percent; }

  // Two draws differ in block size, pool size, batch size and everything else
  // but what a request may ask for.
  EngineOptions RandomOptions() {
    EngineOptions o;
    o.limits.block_size = 1 << Pick(0, 4);
    o.limits.max_model_len = 96;
    o.limits.max_num_seqs = Pick(1, 10);
    o.limits.max_num_batched_tokens = Pick(1, 64);
    o.limits.vocab_size = kVocab;
    o.limits.max_logprobs = 3;
    o.limits.max_bias_entries = 4;
    o.enable_prefix_caching = Chance(75);
    o.num_kv_blocks = o.limits.max_blocks_per_seq() * Pick(1, 4) + Pick(0, 3);
    o.eos_token_ids = {1};
    return o;
  }

  Request RandomRequest() {
    Request r;
    r.id = RequestId(++last_id_);
    const int32_t length = Pick(1, Chance(20) ? 95 : 40);
    const auto base = static_cast<uint64_t>(Pick(1, 2));
    const int32_t shared = Pick(0, length);
    for (int32_t i = 0; i < length; ++i) {
      const uint64_t source = i < shared ? base : random_();
      r.prompt.push_back(static_cast<TokenId>(Mix(source, static_cast<uint64_t>(i)) % kVocab));
    }
    r.priority = Pick(0, 2);
    r.sampling.temperature = Chance(50) ? 0.0f : 0.7f;
    r.sampling.seed = random_();
    r.sampling.max_tokens = Pick(1, 40);
    r.sampling.ignore_eos = Chance(50);
    if (Chance(15)) r.sampling.repetition_penalty = 1.5f;
    if (Chance(15)) r.sampling.logprobs = Pick(0, 3);
    if (Chance(5)) r.sampling.prompt_logprobs = 1;
    return r;
  }

  void SubmitOne() {
    Request request = RandomRequest();
    if (Chance(20)) {  // a whole request beside those it prefills
      whole_.insert(request.id.value);
      requests_[request.id.value] = request;
      ASSERT_TRUE(prefill_.scheduler().Submit(std::move(request)).ok());
      return;
    }
    requests_[request.id.value] = request;
    request.sampling.max_tokens = 1;
    request.sampling.prompt_logprobs = -1;
    request.hold_kv = true;
    ASSERT_TRUE(prefill_.scheduler().Submit(std::move(request)).ok());
  }

  void Abort(Simulation& engine) {
    if (last_id_ == 0) return;
    const auto id = static_cast<uint64_t>(Pick(1, static_cast<int32_t>(last_id_)));
    engine.Collect();
    engine.scheduler().Abort(RequestId(id));
    engine.Collect();
    aborted_.insert(id);
  }

  bool HasWork() {
    return prefill_.scheduler().HasWork() || decode_.scheduler().HasWork() || !transfers_.empty() ||
           !leases_.empty() || !ending_.empty() || !handed_over_.empty();
  }

  void Turn() {
    for (Simulation* engine : {&prefill_, &decode_}) {
      if (engine->in_flight() < 2 && Chance(80)) engine->Launch(Chance(40));
      if (engine->in_flight() > 0 && Chance(engine->in_flight() == 2 ? 90 : 40)) engine->Commit();
      engine->Collect();
    }
    TakePrefillWork();
    TakeDecodeWork();
    HandOver();
    MoveKv();
    EndLeases();
    if (!leases_.empty() && Chance(2)) Return(leases_.begin()->first);  // its TTL
  }

  void TakePrefillWork() {
    KvWork work;
    prefill_.scheduler().TakeKvWork(&work);
    ASSERT_TRUE(work.pulls.empty());
    for (KvGrant& grant : work.grants) {
      const uint64_t id = grant.id.value;
      ASSERT_FALSE(forwarded_.contains(id)) << "two leases";
      const bool early = Chance(60);
      if (early) handed_over_[id] = grant.num_tokens;
      leases_[id] = {std::move(grant), 0, early, 0, {}};
      leases_[id].tokens_done = leases_[id].grant.tokens_done;
    }
    for (const KvProgress& progress : work.progress) {
      const auto lease = leases_.find(progress.id.value);
      if (lease == leases_.end()) continue;
      ASSERT_GT(progress.tokens_done, lease->second.tokens_done);
      lease->second.tokens_done = progress.tokens_done;
      if (progress.tokens_done == lease->second.grant.num_tokens) {
        ASSERT_TRUE(prefill_.filled().contains(progress.id.value));
      }
    }
    for (const RequestId id : work.revoked) End(id.value);
    HandOverFinished();
  }

  // Whose lease was not handed over while it was filled.
  void HandOverFinished() {
    for (const auto& [id, got] : prefill_.received()) {
      const bool length = got.reason == FinishReason::kLength;
      const bool done = length || got.reason == FinishReason::kStop;
      if (!done || whole_.contains(id) || forwarded_.contains(id)) continue;
      if (handed_over_.contains(id)) continue;
      const auto lease = leases_.find(id);
      const bool kept = length && lease != leases_.end();
      if (kept) {
        ASSERT_EQ(lease->second.tokens_done, lease->second.grant.num_tokens);
      }
      handed_over_[id] = kept ? lease->second.grant.num_tokens : 0;
      if (!kept) End(id);  // one token was the whole answer
    }
  }

  // No new read may begin; one may be in flight.
  void End(uint64_t id) {
    const auto it = leases_.find(id);
    if (it == leases_.end()) return;
    Lease lease = std::move(it->second);
    leases_.erase(it);
    lease.turns_left = Pick(0, 4);
    for (int32_t t = 0; t < Ready(lease); ++t) lease.read.push_back(Kv(lease, t));
    ending_.push_back(std::move(lease));
  }

  void EndLeases() {
    std::erase_if(ending_, [this](Lease& lease) {
      if (lease.turns_left-- > 0) return false;
      for (size_t t = 0; t < lease.read.size(); ++t) {
        EXPECT_EQ(Kv(lease, static_cast<int32_t>(t)), lease.read[t]) << "written under a read";
      }
      prefill_.scheduler().ReturnLent(lease.grant.id);
      return true;
    });
  }

  uint64_t Kv(const Lease& lease, int32_t token) {
    return prefill_.device().Kv(lease.grant.blocks.front(), token);
  }

  // Tokens in blocks that are written to their end.
  int32_t Ready(const Lease& lease) const {
    const int32_t size = prefill_options_.limits.block_size;
    const int32_t done = lease.tokens_done;
    return done == lease.grant.num_tokens ? done : done / size * size;
  }

  // The router: finished prompts go to the decode engine.
  void HandOver() {
    for (const auto& [id, num_tokens] : handed_over_) {
      forwarded_.insert(id);
      Request request = requests_.at(id);
      if (num_tokens > 0) {
        ASSERT_EQ(num_tokens, static_cast<int32_t>(request.prompt.size()));
        KvSource source;
        source.sources = {{"fake://prefill", {id, id}}};
        // Now and then less than the whole prompt.
        source.num_tokens = Chance(80) ? num_tokens : Pick(1, num_tokens);
        source.recompute_on_failure = Chance(70);
        request.kv_source = source;
      }
      ASSERT_TRUE(decode_.scheduler().Submit(std::move(request)).ok());
    }
    handed_over_.clear();
  }

  void TakeDecodeWork() {
    KvWork work;
    decode_.scheduler().TakeKvWork(&work);
    for (MigrationRequest& pull : work.pulls) {
      const int32_t first = pull.first_token;
      Transfer transfer{std::move(pull), Pick(0, 12), Status::Ok(), first};
      if (Chance(15)) transfer.status = Status::Unavailable("lost");
      transfers_.push_back(std::move(transfer));
    }
    for (const RequestId id : work.aborts) {
      for (Transfer& transfer : transfers_) {
        if (transfer.pull.id == id) transfer.status = Status::Unavailable("aborted");
      }
      Return(id.value);
    }
    for (const auto& sources : work.releases) Return(sources.front().lease.id);
  }

  // Bytes arrive until the very event that ends a transfer, whatever its status.
  void MoveKv() {
    std::vector<MigrationEvent> events;
    std::erase_if(transfers_, [&](Transfer& transfer) {
      const MigrationRequest& pull = transfer.pull;
      const auto lease = leases_.find(pull.sources.front().lease.id);
      if (transfer.status.ok() && lease == leases_.end()) {
        transfer.status = Status::PermissionDenied("lease expired");
      }
      if (transfer.status.ok()) Pull(&transfer, lease->second);
      const bool waits = transfer.status.ok() && transfer.pulled < pull.num_tokens;
      if (waits || transfer.turns_left-- > 0) return false;
      for (int32_t t = pull.first_token; t < pull.num_tokens && !transfer.status.ok(); ++t) {
        decode_.device().Kv(pull.local_blocks.front(), t) = random_();
      }
      if (transfer.status.ok()) Return(lease->first);
      events.push_back({pull.id, transfer.status, 0});
      return true;
    });
    decode_.scheduler().Advance(events);
    decode_.Collect();
  }

  // What is written and not here yet.
  void Pull(Transfer* transfer, const Lease& lease) {
    const int32_t end = std::min(Ready(lease), transfer->pull.num_tokens);
    for (; transfer->pulled < end; ++transfer->pulled) {
      decode_.device().Kv(transfer->pull.local_blocks.front(), transfer->pulled) =
          Kv(lease, transfer->pulled);
      if (lease.tokens_done < lease.grant.num_tokens) ++num_early_tokens;
    }
  }

  void Return(uint64_t id) {
    if (leases_.erase(id) > 0) prefill_.scheduler().ReturnLent(RequestId(id));
  }

  void CheckAnswers() {
    const Reference reference(decode_options_);
    for (const auto& [id, request] : requests_) {
      if (whole_.contains(id)) {
        CheckWhole(request);
        continue;
      }
      if (!forwarded_.contains(id)) {
        ASSERT_TRUE(aborted_.contains(id)) << "request " << id << " was lost";
        continue;
      }
      ASSERT_TRUE(decode_.received().contains(id)) << "request " << id << " got nothing";
      const Received& got = decode_.received().at(id);
      const Answer want = reference.Run(request, nullptr);
      if (got.reason == FinishReason::kAbort) {
        ASSERT_TRUE(aborted_.contains(id));
        continue;
      }
      if (got.reason == FinishReason::kError) {
        ASSERT_TRUE(got.error.starts_with("migration_failed: ")) << got.error;
        ASSERT_TRUE(got.tokens.empty());
        ++num_failed;
        continue;
      }
      ASSERT_EQ(got.tokens, want.tokens) << "request " << id;
      ASSERT_EQ(got.reason, want.reason) << "request " << id << " " << got.error;
      ASSERT_EQ(got.logprobs, want.logprobs) << "request " << id;
      ASSERT_EQ(got.prompt_logprobs, want.prompt_logprobs) << "request " << id;
      ASSERT_LT(got.num_cached_tokens, static_cast<int32_t>(request.prompt.size()));
      ++num_answers;
    }
  }

  void CheckWhole(const Request& request) {
    const Received& got = prefill_.received().at(request.id.value);
    if (got.reason == FinishReason::kAbort) return;
    const Answer want = Reference(prefill_options_).Run(request, nullptr);
    ASSERT_EQ(got.tokens, want.tokens) << got.error;
    ASSERT_EQ(got.reason, want.reason);
  }

  std::mt19937 random_;
  EngineOptions prefill_options_;
  Simulation prefill_;
  EngineOptions decode_options_;
  Simulation decode_;
  uint64_t last_id_ = 0;
  std::map<uint64_t, Request> requests_;
  std::set<uint64_t> aborted_;
  std::set<uint64_t> forwarded_;
  std::map<uint64_t, int32_t> handed_over_;  // tokens under lease, 0 = none
  std::set<uint64_t> whole_;                 // requests that the prefill engine serves alone
  std::map<uint64_t, Lease> leases_;
  std::vector<Lease> ending_;
  std::vector<Transfer> transfers_;
};

TEST(Disaggregation, EveryRequestGetsThePlainAnswerAndEveryBlockReturns) {
  int answers = 0;
  int failed = 0;
  int early_tokens = 0;
  uint64_t prefill_preemptions = 0;
  SchedulerStats total;
  for (int seed = 0; seed < kScenes; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    TwoEngines engines(static_cast<uint32_t>(seed));
    engines.Run();
    if (HasFatalFailure()) return;
    answers += engines.num_answers;
    failed += engines.num_failed;
    early_tokens += engines.num_early_tokens;
    prefill_preemptions += engines.PrefillStats().num_preemptions;
    const SchedulerStats stats = engines.Stats();
    total.num_migrations += stats.num_migrations;
    total.num_failed_migrations += stats.num_failed_migrations;
    total.num_preemptions += stats.num_preemptions;
  }
  // A simulation that never gets into trouble proves nothing.
  EXPECT_GT(answers, 3000);
  EXPECT_GT(failed, 100);
  EXPECT_GT(total.num_migrations, 3000u);
  EXPECT_GT(total.num_failed_migrations, 500u);
  EXPECT_GT(total.num_preemptions, 100u);
  EXPECT_GT(prefill_preemptions, 50u);
  EXPECT_GT(early_tokens, 5000);
}

}  // namespace
}  // namespace dlcore::testing

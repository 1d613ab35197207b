// Both sides of early pulls at random: an owner that fills, gives up, forgets and dies, and a
// reader that pulls, gives up and comes too late.
#include <map>
#include <numeric>
#include <optional>
#include <random>

#include "tests/cpp/transport/migrator_harness.h"

namespace dlcore::testing_harness {
namespace {

constexpr int32_t kOwnerBlocks = 128;
constexpr int32_t kOwnerBlockSize = 4;
constexpr int32_t kMostTokens = 40;
constexpr uint8_t kNoise = 0xee;

// Blocks of a pool, alike in both groups.
class FreeBlocks {
 public:
  explicit FreeBlocks(int32_t count) : free_(static_cast<size_t>(count)) {
    std::iota(free_.begin(), free_.end(), 0);
  }
  [[nodiscard]] size_t size() const { return free_.size(); }
  std::optional<LeaseBlocks> Take(int32_t count) {
    if (free_.size() < static_cast<size_t>(count)) return std::nullopt;
    LeaseBlocks tables(2);
    for (int32_t i = 0; i < count; ++i) {
      for (auto& table : tables) table.emplace_back(free_.back());
      free_.pop_back();
    }
    return tables;
  }
  void Return(const LeaseBlocks& tables, std::mt19937* random) {
    for (const BlockId block : tables[0]) free_.push_back(block.value);
    std::shuffle(free_.begin(), free_.end(), *random);
  }

 private:
  std::vector<int32_t> free_;
};

int32_t BlocksFor(int32_t tokens, int32_t block_size) {
  return (tokens + block_size - 1) / block_size;
}

uint8_t ContentOf(uint64_t seed, size_t l, int32_t t, int32_t p, int32_t h, int32_t b) {
  const auto spread = static_cast<int32_t>(seed % 1000) * 37;
  return Content(l, t + spread, p, h, b);
}

// One life of a prefill node: its table and its server. The pool outlives it.
class Life {
 public:
  Life(const std::string& transport, Pool* pool)
      : table(pool->layout(), {.ttl = milliseconds(1000)}, [this](LeaseRef, LeaseBlocks blocks) {
          const std::lock_guard lock(mutex_);
          returned_.push_back(std::move(blocks));
        }) {
    TransportServerOptions options;
    options.key = kKey;
    options.leases = &table;
    options.memory = pool;
    EXPECT_TRUE(NewTransportServer(transport, options, &server).ok());
  }
  std::vector<LeaseBlocks> TakeReturned() {
    const std::lock_guard lock(mutex_);
    return std::exchange(returned_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<LeaseBlocks> returned_;

 public:
  LeaseTable table;
  std::unique_ptr<TransportServer> server;
};

class Storm {
 public:
  Storm(const std::string& transport, uint32_t seed, int32_t local_block_size)
      : transport_(transport),
        random_(seed),
        owner_(ModelLayout(kOwnerBlockSize, kOwnerBlocks, 1, 0), Side::kOwner),
        owner_blocks_(kOwnerBlocks),
        life_(std::make_unique<Life>(transport, &owner_)),
        local_block_size_(local_block_size),
        local_blocks_(kOwnerBlocks),
        decoder_(ModelLayout(local_block_size, kOwnerBlocks, 1, 0)) {
    for (size_t l = 0; l < kLayers; ++l) Fill(&owner_.layer(l), kNoise);
  }

  // On a busy machine the pulls are begun in fewer turns, of which each may be the owner's last.
  void Run(int32_t num_pulls, int32_t num_deaths) {
    const TimePoint limit = In(seconds(120));
    while (next_id_ < static_cast<uint64_t>(num_pulls) || deaths < num_deaths) {
      ASSERT_LT(std::chrono::steady_clock::now(), limit) << next_id_ << " pulls begun";
      Turn();
      if (testing::Test::HasFatalFailure()) return;
    }
    const auto settled = [this] {
      while (!filling_.empty()) FillSome();
      Collect();
      return pulls_.empty() && life_->table.num_live() == 0 && owner_blocks_.size() == kOwnerBlocks;
    };
    ASSERT_TRUE(Eventually(settled, seconds(30))) << pulls_.size() << " pulls without an event";
    EXPECT_EQ(local_blocks_.size(), static_cast<size_t>(kOwnerBlocks));
  }

  int32_t completed = 0;
  std::map<StatusCode, int32_t> failed;
  int32_t deaths = 0;
  MigrationCounters counters() const { return decoder_.migrator.counters(); }

 private:
  struct Filling {
    LeaseRef lease;
    uint64_t seed = 0;
    LeaseBlocks blocks;
    int32_t num_tokens = 0;
    int32_t done = 0;
    bool last_by_layers = false;
    int32_t layers = 0;  // written of the last chunk, where it is told layer by layer
  };
  struct Pull {
    uint64_t seed = 0;
    LeaseBlocks blocks;
    int32_t first = 0;
    int32_t end = 0;
  };

  static void Fill(Bytes* bytes, uint8_t value) { std::fill(bytes->begin(), bytes->end(), value); }
  int32_t Pick(int32_t low, int32_t high) {
    return std::uniform_int_distribution(low, high)(random_);
  }
  bool Chance(int32_t of_thousand) { return Pick(0, 999) < of_thousand; }

  void Turn() {
    if (Chance(250)) Begin();
    FillSome();
    if (Chance(20) && !filling_.empty()) {  // the owner gives up
      static_cast<void>(life_->table.Abort(AnyFilling()->lease));
    }
    if (Chance(20) && !pulls_.empty()) decoder_.migrator.Abort(RequestId(AnyPull()));
    if (Chance(3)) Die();
    if (Chance(300)) std::this_thread::sleep_for(milliseconds(1));
    Collect();
  }

  std::vector<Filling>::iterator AnyFilling() {
    return filling_.begin() + Pick(0, static_cast<int32_t>(filling_.size()) - 1);
  }
  uint64_t AnyPull() {
    return std::next(pulls_.begin(), Pick(0, static_cast<int32_t>(pulls_.size()) - 1))->first;
  }

  void Begin() {
    Filling next;
    next.seed = ++next_seed_;
    next.num_tokens = Pick(1, kMostTokens);
    next.last_by_layers = Chance(500);
    auto blocks = owner_blocks_.Take(BlocksFor(next.num_tokens, kOwnerBlockSize));
    if (!blocks) return;
    next.blocks = std::move(*blocks);
    ASSERT_TRUE(life_->table.Create(next.blocks, next.num_tokens, &next.lease).ok());
    if (!Chance(50)) Post(next);  // else nobody comes for it
    last_ = next.lease;
    filling_.push_back(std::move(next));
  }

  void Post(const Filling& source) {
    Pull pull{source.seed, {}, 0, Pick(1, source.num_tokens)};
    pull.first = Chance(300) ? Pick(0, pull.end - 1) : 0;
    auto blocks = local_blocks_.Take(BlocksFor(pull.end, local_block_size_));
    if (!blocks) return;
    pull.blocks = std::move(*blocks);
    MigrationRequest request;
    request.id = RequestId(next_id_);
    // Now and then the name of a lease of an earlier life.
    const bool stale = old_ && Chance(20);
    request.sources = {{life_->server->endpoint(), stale ? *old_ : source.lease}};
    request.local_blocks = pull.blocks;
    request.first_token = pull.first;
    request.num_tokens = pull.end;
    request.timeout = seconds(10);
    decoder_.migrator.Post(std::move(request));
    if (stale) pull.seed = 0;
    pulls_[next_id_++] = std::move(pull);
  }

  // The owner writes a chunk, or a layer of the last one, then says so. One that has lost its lease
  // goes on: its blocks are its own until the lease returns them.
  void FillSome() {
    if (filling_.empty()) return;
    const auto it = AnyFilling();
    const int32_t next =
        it->layers > 0 ? it->num_tokens : std::min(it->num_tokens, it->done + Pick(1, 12));
    if (next == it->num_tokens && it->last_by_layers) return FillLayer(it);
    Write(*it, next, 0, kLayers);
    static_cast<void>(life_->table.MarkTokensDone(it->lease, next));
    it->done = next;
    if (next == it->num_tokens) filling_.erase(it);
  }

  // Layers may be told of several at once, and never: then the end of the step tells of all.
  void FillLayer(std::vector<Filling>::iterator it) {
    const int32_t next = std::min<int32_t>(kLayers, it->layers + Pick(1, 2));
    Write(*it, it->num_tokens, static_cast<size_t>(it->layers), static_cast<size_t>(next));
    it->layers = next;
    if (Chance(800)) static_cast<void>(life_->table.MarkLayersDone(it->lease, next));
    if (next < static_cast<int32_t>(kLayers)) return;
    static_cast<void>(life_->table.MarkTokensDone(it->lease, it->num_tokens));
    filling_.erase(it);
  }

  // Tokens up to `end` of layers [first, last).
  void Write(const Filling& filling, int32_t end, size_t first, size_t last) {
    ForEach(&owner_, filling.blocks, filling.done, end,
            [&](uint8_t& byte, size_t l, int32_t t, int32_t p, int32_t h, int32_t b) {
              if (l >= first && l < last) byte = ContentOf(filling.seed, l, t, p, h, b);
            });
  }

  // Killed and started anew: another endpoint, other epochs, an empty pool.
  void Die() {
    old_ = last_;
    life_->server.reset();
    life_.reset();
    filling_.clear();
    owner_blocks_ = FreeBlocks(kOwnerBlocks);
    for (size_t l = 0; l < kLayers; ++l) Fill(&owner_.layer(l), kNoise);
    life_ = std::make_unique<Life>(transport_, &owner_);
    ++deaths;
  }

  void Collect() {
    life_->table.Expire();
    for (const LeaseBlocks& blocks : life_->TakeReturned()) TakeBack(blocks);
    std::vector<MigrationEvent> events;
    decoder_.migrator.PollCompleted(&events);
    for (const MigrationEvent& event : events) End(event);
  }

  // Blocks that came back are written by others at once.
  void TakeBack(const LeaseBlocks& blocks) {
    const int32_t end = static_cast<int32_t>(blocks[0].size()) * kOwnerBlockSize;
    ForEach(&owner_, blocks, 0, end,
            [](uint8_t& byte, size_t, int32_t, int32_t, int32_t, int32_t) { byte = kNoise; });
    std::erase_if(filling_, [&](const Filling& f) { return f.blocks == blocks; });
    owner_blocks_.Return(blocks, &random_);
  }

  void End(const MigrationEvent& event) {
    const auto it = pulls_.find(event.id.value);
    ASSERT_NE(it, pulls_.end()) << "two events";
    Pull& pull = it->second;
    if (event.status.ok()) {
      ++completed;
      ASSERT_NE(pull.seed, 0U) << "a lease of another life was read";
      Check(pull);
    } else {
      ++failed[event.status.code()];
    }
    const int32_t end = static_cast<int32_t>(pull.blocks[0].size()) * local_block_size_;
    ForEach(&decoder_.pool, pull.blocks, 0, end,
            [](uint8_t& byte, size_t, int32_t, int32_t, int32_t, int32_t) { byte = 0; });
    local_blocks_.Return(pull.blocks, &random_);
    pulls_.erase(it);
  }

  void Check(const Pull& pull) {
    ForEach(&decoder_.pool, pull.blocks, 0, pull.end,
            [&](const uint8_t& byte, size_t l, int32_t t, int32_t p, int32_t h, int32_t b) {
              const uint8_t want = t < pull.first ? 0 : ContentOf(pull.seed, l, t, p, h, b);
              ASSERT_EQ(byte, want) << "layer " << l << " token " << t;
            });
  }

  const std::string transport_;
  std::mt19937 random_;
  Pool owner_;
  FreeBlocks owner_blocks_;
  std::unique_ptr<Life> life_;
  std::vector<Filling> filling_;
  std::optional<LeaseRef> last_;
  std::optional<LeaseRef> old_;
  uint64_t next_seed_ = 0;

  const int32_t local_block_size_;
  FreeBlocks local_blocks_;
  Decoder decoder_;
  std::map<uint64_t, Pull> pulls_;  // by request id
  uint64_t next_id_ = 0;
};

class EarlyPullStorm : public testing::TestWithParam<std::string> {};

// Run under TSan, this also shows that no byte is read while it is written.
TEST_P(EarlyPullStorm, NoBlockIsLostAndNothingUnwrittenOrRecycledIsRead) {
  int32_t completed = 0;
  int32_t deaths = 0;
  std::map<StatusCode, int32_t> failed;
  uint64_t aborted = 0;
  uint64_t early_bytes = 0;
  uint32_t seed = 0;
  for (const int32_t local_block_size : {4, 8, 3}) {
    SCOPED_TRACE("local block size " + std::to_string(local_block_size));
    Storm storm(GetParam(), ++seed, local_block_size);
    storm.Run(300, 2);
    if (HasFatalFailure()) return;
    completed += storm.completed;
    deaths += storm.deaths;
    for (const auto& [code, count] : storm.failed) failed[code] += count;
    aborted += storm.counters().aborted;
    early_bytes += storm.counters().early_bytes;
  }
  EXPECT_GT(completed, 200);
  EXPECT_GT(deaths, 3);
  EXPECT_GT(failed[StatusCode::kPermissionDenied], 10);  // given up, expired or of another life
  EXPECT_GT(failed[StatusCode::kUnavailable], 10);       // dead, or given up here
  EXPECT_GT(aborted, 5U);
  EXPECT_GT(early_bytes, 100'000U);
}

INSTANTIATE_TEST_SUITE_P(Transports, EarlyPullStorm, testing::ValuesIn(AvailableTransports()),
                         [](const auto& param) { return param.param; });

}  // namespace
}  // namespace dlcore::testing_harness

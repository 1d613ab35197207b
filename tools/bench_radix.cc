// What it costs to find a long prompt in a large, warm prefix cache.
#include <random>
#include <vector>

#include <benchmark/benchmark.h>

#include "base/hash.h"
#include "kv/block_pool.h"
#include "kv/radix_tree.h"
#include "tools/bench_stats.h"

namespace dlcore {
namespace {

constexpr int32_t kBlockSize = 16;
constexpr int32_t kTreeBlocks = 1 << 20;

// A tree of kTreeBlocks blocks: prompts of one length, with nothing in common.
class WarmTree {
 public:
  explicit WarmTree(int32_t prompt_len)
      : prompt_len_(prompt_len), pool_(kTreeBlocks), tree_(&pool_, kBlockSize), hasher_(1, 2) {
    root_ = tree_.AcquireRoot("");
    std::mt19937 random(7);
    for (int32_t i = 0; i < kTreeBlocks / (prompt_len / kBlockSize); ++i) {
      prompts_.emplace_back();
      for (int32_t t = 0; t < prompt_len; ++t) {
        prompts_.back().push_back(static_cast<TokenId>(random() % 150000));
      }
      hashes_.push_back(HashesOf(prompts_.back()));
      Insert(prompts_.back(), hashes_.back());
    }
  }

  [[nodiscard]] size_t size() const { return prompts_.size(); }
  int32_t Match(size_t i, std::vector<BlockId>* out) {
    return tree_.Match(root_, hashes_[i], {prompts_[i], {}}, out);
  }

 private:
  std::vector<Hash128> HashesOf(std::span<const TokenId> prompt) const {
    std::vector<Hash128> hashes;
    Hash128 parent = hasher_.Root("");
    for (size_t at = 0; at < prompt.size(); at += kBlockSize) {
      parent = hasher_.Block(parent, prompt.subspan(at, kBlockSize));
      hashes.push_back(parent);
    }
    return hashes;
  }

  void Insert(std::span<const TokenId> prompt, const std::vector<Hash128>& hashes) {
    std::vector<BlockId> blocks;
    if (!pool_.Allocate(prompt_len_ / kBlockSize, &blocks)) return;
    BlockId parent = kNoBlock;
    for (size_t i = 0; i < blocks.size(); ++i) {
      parent = tree_.Insert(root_, parent, hashes[i], prompt.subspan(i * kBlockSize, kBlockSize),
                            blocks[i]);
    }
    for (const BlockId block : blocks) pool_.Unref(block);
    tree_.Touch(blocks.back());
  }

  int32_t prompt_len_;
  BlockPool pool_;
  RadixTree tree_;
  BlockHasher hasher_;
  RadixTree::Root* root_;
  std::vector<std::vector<TokenId>> prompts_;
  std::vector<std::vector<Hash128>> hashes_;
};

void BM_RadixMatch(benchmark::State& state) {
  WarmTree tree(static_cast<int32_t>(state.range(0)));
  std::mt19937 random(3);
  std::vector<BlockId> found;
  LapTimer timer(&state);
  for (auto _ : state) {
    const size_t i = random() % tree.size();
    found.clear();
    timer.Start();
    const int32_t matched = tree.Match(i, &found);
    timer.Stop();
    if (matched != state.range(0) / kBlockSize) state.SkipWithError("no hit");
  }
  timer.Report();
}
BENCHMARK(BM_RadixMatch)->Arg(32768)->UseManualTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace dlcore

BENCHMARK_MAIN();

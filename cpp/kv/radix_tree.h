#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/hash.h"
#include "dlcore/types.h"
#include "kv/block_pool.h"
#include "kv/radix_node.h"
#include "kv/token_view.h"

namespace dlcore {

// The prefix cache: which full blocks hold the KV of which tokens.
//
// Compressed: a node is a run of blocks without a branch. Children are found by
// the chained hash of their first block, but the tokens decide: a hit needs
// equal tokens all the way and an equal salt, whatever the hashes say.
//
// Who uses a block references it in the pool, and with it every block before it
// on its path; so an unreferenced block never has a referenced one below, and
// every unreferenced block can be evicted (from the tails of the least recently
// used leaves).
// Thread safety: engine thread only.
class RadixTree {
 public:
  using Root = RadixNode;

  // REQUIRES: block_size > 0; `pool` outlives the tree
  RadixTree(BlockPool* pool, int32_t block_size);
  ~RadixTree();

  // The tree of one salt. A root lives while it is held or has cached blocks.
  Root* AcquireRoot(std::string_view salt);
  void ReleaseRoot(Root* root);

  // Appends the cached blocks that hold the longest prefix of `tokens` to `out`,
  // at most hashes.size() of them. hashes[i] is the chained hash of block i.
  // Takes no reference. Returns how many.
  int32_t Match(Root* root, std::span<const Hash128> hashes, const TokenView& tokens,
                std::vector<BlockId>* out);

  // Offers a computed full block that follows `parent` (kNoBlock: the root).
  // Returns the block that holds these tokens in the tree from now on: `block`
  // itself, or an equal one that was there before. kNoBlock when another block
  // with the same hash but other tokens is there, so this one cannot be cached.
  // REQUIRES: the caller references `block`, `parent` and all before it
  BlockId Insert(Root* root, BlockId parent, const Hash128& hash, std::span<const TokenId> tokens,
                 BlockId block);

  // Call after the references to a path that ends in `last` changed: renews its
  // age and makes its tail evictable when nobody references it.
  void Touch(BlockId last);

  // Frees up to `count` unreferenced blocks; returns how many.
  int32_t Evict(int32_t count);

  [[nodiscard]] int32_t num_nodes() const { return static_cast<int32_t>(children_.size()); }
  [[nodiscard]] int32_t num_roots() const { return static_cast<int32_t>(roots_.size()); }

 private:
  struct BlockMeta {
    RadixNode* node = nullptr;
    int32_t depth = 0;  // blocks between the root and this one
  };

  [[nodiscard]] BlockMeta& meta(BlockId b) { return meta_[static_cast<size_t>(b.value)]; }
  [[nodiscard]] Hash128& hash(BlockId b) { return hashes_[static_cast<size_t>(b.value)]; }
  [[nodiscard]] TokenId* tokens(BlockId b) {
    return tokens_.get() + static_cast<size_t>(b.value) * block_size_;
  }
  [[nodiscard]] bool Holds(BlockId block, std::span<const TokenId> want);
  [[nodiscard]] RadixNode* FindChild(const RadixNode* parent, const Hash128& hash) const;

  int32_t MatchRun(const RadixNode& node, int32_t first, int32_t limit, const TokenView& tokens);
  void SplitAfter(RadixNode* node, int32_t keep);
  void Append(RadixNode* node, const Hash128& hash, std::span<const TokenId> tokens, BlockId block);
  RadixNode* NewNode(RadixNode* parent, int32_t start_depth);
  void PopBack(RadixNode* node);
  void RemoveEmpty(RadixNode* node);
  void MaybeDropRoot(RadixNode* root);

  BlockPool* pool_;
  size_t block_size_;
  std::vector<BlockMeta> meta_;        // [num_blocks]
  std::vector<Hash128> hashes_;        // [num_blocks]
  std::unique_ptr<TokenId[]> tokens_;  // [num_blocks, block_size]
  std::vector<TokenId> scratch_;       // [block_size]
  std::unordered_map<std::string, std::unique_ptr<RadixNode>> roots_;
  std::unordered_map<Hash128, RadixNode*> children_;  // hash of the first block -> node
  std::vector<std::unique_ptr<RadixNode>> spare_;     // nodes to use again
  EvictionHeap evictable_;
  uint64_t clock_ = 0;
};

}  // namespace dlcore

#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "kv/block_pool.h"
#include "kv/block_table.h"
#include "kv/radix_tree.h"
#include "kv/token_view.h"

namespace dlcore {

// What one sequence holds of the KV cache. Table entries [0, num_published) are
// in the prefix cache; the rest are its own.
struct SequenceCache {
  BlockTable table;
  int32_t num_published = 0;
  bool publishes = true;            // false once a block could not enter the prefix cache
  RadixTree::Root* root = nullptr;  // null while prefix caching is off
  std::vector<Hash128> hashes;      // of full blocks, chained, computed once
  Hash128 root_hash;
};

// Gives sequences the blocks their tokens need, from the prefix cache where it
// can, evicting unreferenced cached blocks where it must.
// Laws: free + referenced + cached = total; no block has two writers; a table
// never names a free block.
// Thread safety: engine thread only. No allocation in steady state.
class KvManager {
 public:
  struct Options {
    int32_t num_blocks = 0;
    int32_t block_size = 16;
    bool enable_prefix_caching = true;
    uint64_t hash_key[2] = {0, 0};  // both 0 = drawn at random
  };

  explicit KvManager(const Options& options);

  // Binds a sequence to the tree of its salt. `max_tokens`: the longest it can get.
  void Attach(SequenceCache* cache, std::string_view salt, int32_t max_tokens);
  // REQUIRES: Release was called
  void Detach(SequenceCache* cache);

  // Fills the empty table with the cached blocks of the longest prefix of
  // `tokens`, at most `max_blocks`. Returns how many. REQUIRES: an empty table
  int32_t AcquirePrefix(SequenceCache* cache, const TokenView& tokens, int32_t max_blocks);

  // Makes the table cover `num_tokens` tokens, all or nothing. False when even
  // evicting everything unreferenced would not do.
  [[nodiscard]] bool Extend(SequenceCache* cache, int32_t num_tokens);

  // The KV of the first `num_computed` tokens is written: their full blocks enter
  // the prefix cache. Where an equal block is there already, the table takes that
  // one and the duplicate is appended to `retired`, still referenced: a plan in
  // flight may read it. REQUIRES: num_computed <= tokens.size()
  void Publish(SequenceCache* cache, const TokenView& tokens, int32_t num_computed,
               std::vector<BlockId>* retired);
  // Drops the references Publish left in `retired` and empties it.
  void DropRetired(std::vector<BlockId>* retired);

  // Gives every block back; published ones stay cached. Idempotent.
  void Release(SequenceCache* cache);

  [[nodiscard]] int32_t BlocksFor(int32_t num_tokens) const {
    return (num_tokens + block_size_ - 1) / block_size_;
  }
  // Blocks an Extend could take now.
  [[nodiscard]] int32_t num_available() const { return pool_.num_free() + pool_.num_cached(); }
  [[nodiscard]] const BlockPool& pool() const { return pool_; }
  [[nodiscard]] bool caching() const { return caching_; }

 private:
  void ExtendHashes(SequenceCache* cache, const TokenView& tokens, int32_t num_blocks);

  int32_t block_size_;
  bool caching_;
  BlockHasher hasher_;
  BlockPool pool_;
  RadixTree tree_;
  std::vector<TokenId> scratch_;  // [block_size]
};

}  // namespace dlcore

#include "kv/kv_manager.h"

#include <algorithm>
#include <span>

#include "base/check.h"

namespace dlcore {
namespace {

BlockHasher MakeHasher(const KvManager::Options& options) {
  uint64_t key[2] = {options.hash_key[0], options.hash_key[1]};
  if (key[0] == 0 && key[1] == 0) DrawHashKey(key);
  return {key[0], key[1]};
}

}  // namespace

KvManager::KvManager(const Options& options)
    : block_size_(options.block_size),
      caching_(options.enable_prefix_caching),
      hasher_(MakeHasher(options)),
      pool_(options.num_blocks),
      tree_(&pool_, options.block_size),
      scratch_(static_cast<size_t>(options.block_size)) {}

void KvManager::Attach(SequenceCache* cache, std::string_view salt, int32_t max_tokens) {
  cache->table.Reserve(std::min(BlocksFor(max_tokens), pool_.num_blocks()));
  if (!caching_) return;
  cache->root = tree_.AcquireRoot(salt);
  cache->hashes.reserve(static_cast<size_t>(BlocksFor(max_tokens)));
  cache->root_hash = hasher_.Root(salt);
}

void KvManager::Detach(SequenceCache* cache) {
  DLCORE_CHECK(cache->table.size() == 0) << "detached while holding blocks";
  if (cache->root != nullptr) tree_.ReleaseRoot(cache->root);
  cache->root = nullptr;
}

void KvManager::ExtendHashes(SequenceCache* cache, const TokenView& tokens, int32_t num_blocks) {
  for (auto i = static_cast<int32_t>(cache->hashes.size()); i < num_blocks; ++i) {
    const Hash128& parent = i == 0 ? cache->root_hash : cache->hashes.back();
    const auto block = tokens.Read(static_cast<size_t>(i) * scratch_.size(), scratch_);
    cache->hashes.push_back(hasher_.Block(parent, block));
  }
}

int32_t KvManager::AcquirePrefix(SequenceCache* cache, const TokenView& tokens,
                                 int32_t max_blocks) {
  DLCORE_CHECK(cache->table.size() == 0);
  if (!caching_ || max_blocks <= 0) return 0;
  ExtendHashes(cache, tokens, max_blocks);
  const auto hashes = std::span(cache->hashes).first(static_cast<size_t>(max_blocks));
  const int32_t matched = tree_.Match(cache->root, hashes, tokens, cache->table.tail());
  for (const BlockId block : cache->table.blocks()) pool_.Ref(block);
  if (matched > 0) tree_.Touch(cache->table[matched - 1]);
  cache->num_published = matched;
  return matched;
}

bool KvManager::Extend(SequenceCache* cache, int32_t num_tokens) {
  const int32_t missing = BlocksFor(num_tokens) - cache->table.size();
  if (missing <= 0) return true;
  if (missing > num_available()) return false;
  if (missing > pool_.num_free()) tree_.Evict(missing - pool_.num_free());
  const bool taken = pool_.Allocate(missing, cache->table.tail());
  DLCORE_CHECK(taken) << "an unreferenced block could not be evicted";
  return true;
}

void KvManager::Publish(SequenceCache* cache, const TokenView& tokens, int32_t num_computed,
                        std::vector<BlockId>* retired) {
  if (!caching_ || !cache->publishes) return;
  const int32_t num_full = num_computed / block_size_;
  if (num_full <= cache->num_published) return;
  ExtendHashes(cache, tokens, num_full);
  for (int32_t i = cache->num_published; i < num_full; ++i) {
    const BlockId own = cache->table[i];
    const BlockId parent = i == 0 ? kNoBlock : cache->table[i - 1];
    const auto block = tokens.Read(static_cast<size_t>(i) * scratch_.size(), scratch_);
    const BlockId kept =
        tree_.Insert(cache->root, parent, cache->hashes[static_cast<size_t>(i)], block, own);
    if (kept == kNoBlock) {
      cache->publishes = false;
      return;
    }
    if (kept != own) {
      pool_.Ref(kept);
      cache->table.Replace(i, kept);
      retired->push_back(own);
    }
    cache->num_published = i + 1;
  }
}

void KvManager::DropRetired(std::vector<BlockId>* retired) {
  for (const BlockId block : *retired) pool_.Unref(block);
  retired->clear();
}

void KvManager::Release(SequenceCache* cache) {
  for (const BlockId block : cache->table.blocks()) pool_.Unref(block);
  if (cache->num_published > 0) tree_.Touch(cache->table[cache->num_published - 1]);
  cache->table.Clear();
  cache->num_published = 0;
  cache->publishes = true;
}

}  // namespace dlcore

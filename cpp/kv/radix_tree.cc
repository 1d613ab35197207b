#include "kv/radix_tree.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace dlcore {
namespace {

// A run's first allocation; growing sequences then append without allocating.
constexpr size_t kRunReserve = 256;
// How far ahead of the comparison token blocks are fetched into the cache.
constexpr int32_t kPrefetch = 12;

}  // namespace

RadixTree::RadixTree(BlockPool* pool, int32_t block_size)
    : pool_(pool),
      block_size_(static_cast<size_t>(block_size)),
      meta_(static_cast<size_t>(pool->num_blocks())),
      hashes_(static_cast<size_t>(pool->num_blocks())),
      tokens_(new TokenId[static_cast<size_t>(pool->num_blocks()) * block_size_]),
      scratch_(block_size_) {}

RadixTree::~RadixTree() {
  for (const auto& [hash, node] : children_) delete node;
}

RadixTree::Root* RadixTree::AcquireRoot(std::string_view salt) {
  std::unique_ptr<RadixNode>& root = roots_[std::string(salt)];
  if (!root) {
    root = std::make_unique<RadixNode>();
    root->salt = salt;
  }
  ++root->num_users;
  return root.get();
}

void RadixTree::ReleaseRoot(Root* root) {
  DLCORE_CHECK(root->num_users > 0);
  --root->num_users;
  MaybeDropRoot(root);
}

void RadixTree::MaybeDropRoot(RadixNode* root) {
  if (root->num_users == 0 && root->num_children == 0) roots_.erase(std::string(root->salt));
}

bool RadixTree::Holds(BlockId block, std::span<const TokenId> want) {
  return std::memcmp(tokens(block), want.data(), block_size_ * sizeof(TokenId)) == 0;
}

RadixNode* RadixTree::FindChild(const RadixNode* parent, const Hash128& hash) const {
  const auto it = children_.find(hash);
  return it != children_.end() && it->second->parent == parent ? it->second : nullptr;
}

int32_t RadixTree::Match(Root* root, std::span<const Hash128> hashes, const TokenView& tokens,
                         std::vector<BlockId>* out) {
  const auto limit = static_cast<int32_t>(hashes.size());
  int32_t matched = 0;
  for (RadixNode* node = root; matched < limit;) {
    node = FindChild(node, hashes[static_cast<size_t>(matched)]);
    if (node == nullptr) break;
    const int32_t run = MatchRun(*node, matched, limit, tokens);
    out->insert(out->end(), node->blocks.begin(), node->blocks.begin() + run);
    matched += run;
    if (run < static_cast<int32_t>(node->blocks.size())) break;
  }
  return matched;
}

// Compares the node's run with the request's blocks from `first` on.
int32_t RadixTree::MatchRun(const RadixNode& node, int32_t first, int32_t limit,
                            const TokenView& tokens) {
  const int32_t length = std::min(static_cast<int32_t>(node.blocks.size()), limit - first);
  for (int32_t i = 0; i < length; ++i) {
    if (i + kPrefetch < length) {
      __builtin_prefetch(this->tokens(node.blocks[static_cast<size_t>(i + kPrefetch)]));
    }
    const auto want = tokens.Read(static_cast<size_t>(first + i) * block_size_, scratch_);
    if (!Holds(node.blocks[static_cast<size_t>(i)], want)) return i;
  }
  return length;
}

BlockId RadixTree::Insert(Root* root, BlockId parent, const Hash128& hash,
                          std::span<const TokenId> tokens, BlockId block) {
  RadixNode* node = root;
  if (parent != kNoBlock) {
    node = meta(parent).node;
    const int32_t next = meta(parent).depth - node->start_depth + 1;
    if (next < static_cast<int32_t>(node->blocks.size())) {
      const BlockId there = node->blocks[static_cast<size_t>(next)];
      if (Holds(there, tokens)) return there;
      // Both parts of a split need their hash for themselves.
      if (children_.contains(hash) || children_.contains(this->hash(there))) return kNoBlock;
      SplitAfter(node, next);
      node = node->parent;
    }
  }
  if (const auto it = children_.find(hash); it != children_.end()) {
    RadixNode* child = it->second;
    const bool equal = child->parent == node && Holds(child->blocks.front(), tokens);
    return equal ? child->blocks.front() : kNoBlock;
  }
  if (node->is_root() || node->num_children > 0) {
    node = NewNode(node, node->start_depth + static_cast<int32_t>(node->blocks.size()));
    children_.emplace(hash, node);
  }
  Append(node, hash, tokens, block);
  return block;
}

// Cuts a run in two. The lower part keeps the node, so that its children need no
// change; a new node above takes the first `keep` blocks.
void RadixTree::SplitAfter(RadixNode* node, int32_t keep) {
  const auto cut = node->blocks.begin() + keep;
  RadixNode* upper = NewNode(node->parent, node->start_depth);
  --node->parent->num_children;
  upper->blocks.assign(node->blocks.begin(), cut);
  upper->num_children = 1;
  upper->last_used = node->last_used;
  node->blocks.erase(node->blocks.begin(), cut);
  node->parent = upper;
  node->start_depth += keep;
  for (const BlockId b : upper->blocks) meta(b).node = upper;
  children_[hash(upper->blocks.front())] = upper;
  children_[hash(node->blocks.front())] = node;
}

void RadixTree::Append(RadixNode* node, const Hash128& hash, std::span<const TokenId> tokens,
                       BlockId block) {
  const auto length = static_cast<int32_t>(node->blocks.size());
  meta(block) = {node, node->start_depth + length};
  this->hash(block) = hash;
  std::ranges::copy(tokens, this->tokens(block));
  node->blocks.push_back(block);
  pool_->EnterCache(block);
}

RadixNode* RadixTree::NewNode(RadixNode* parent, int32_t start_depth) {
  if (spare_.empty()) {
    spare_.push_back(std::make_unique<RadixNode>());
    spare_.back()->blocks.reserve(kRunReserve);
  }
  RadixNode* node = spare_.back().release();
  spare_.pop_back();
  node->parent = parent;
  node->start_depth = start_depth;
  node->num_children = 0;
  node->last_used = ++clock_;
  ++parent->num_children;
  return node;
}

void RadixTree::Touch(BlockId last) {
  RadixNode* leaf = meta(last).node;
  ++clock_;
  for (RadixNode* node = leaf; !node->is_root(); node = node->parent) node->last_used = clock_;
  if (leaf->num_children > 0) return;
  if (pool_->ref_count(leaf->back()) == 0) {
    evictable_.PushOrUpdate(leaf);
  } else {
    evictable_.Remove(leaf);
  }
}

int32_t RadixTree::Evict(int32_t count) {
  int32_t evicted = 0;
  while (evicted < count && !evictable_.empty()) {
    RadixNode* leaf = evictable_.top();
    while (evicted < count && !leaf->blocks.empty() && pool_->ref_count(leaf->back()) == 0) {
      PopBack(leaf);
      ++evicted;
    }
    if (leaf->blocks.empty()) {
      RemoveEmpty(leaf);
    } else if (pool_->ref_count(leaf->back()) > 0) {
      evictable_.Remove(leaf);
    }
  }
  return evicted;
}

void RadixTree::PopBack(RadixNode* node) {
  const BlockId block = node->back();
  if (node->blocks.size() == 1) children_.erase(hash(block));
  node->blocks.pop_back();
  meta(block).node = nullptr;
  pool_->Evict(block);
}

void RadixTree::RemoveEmpty(RadixNode* node) {
  RadixNode* parent = node->parent;
  evictable_.Remove(node);
  spare_.emplace_back(node);
  if (--parent->num_children > 0) return;
  if (parent->is_root()) {
    MaybeDropRoot(parent);
  } else if (pool_->ref_count(parent->back()) == 0) {
    evictable_.PushOrUpdate(parent);
  }
}

}  // namespace dlcore

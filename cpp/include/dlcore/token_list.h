#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "dlcore/types.h"

namespace dlcore {

// Tokens in order. The one or two that a step brings a sequence are kept inside
// the object, so that a decode step allocates nothing; more go to the heap.
class TokenList {
 public:
  using value_type = TokenId;
  static constexpr size_t kInline = 3;

  TokenList() = default;
  TokenList(std::initializer_list<TokenId> tokens) { append({tokens.begin(), tokens.size()}); }

  [[nodiscard]] size_t size() const { return heap_.empty() ? num_inline_ : heap_.size(); }
  [[nodiscard]] bool empty() const { return size() == 0; }
  [[nodiscard]] const TokenId* data() const { return heap_.empty() ? inline_ : heap_.data(); }
  [[nodiscard]] const TokenId* begin() const { return data(); }
  [[nodiscard]] const TokenId* end() const { return data() + size(); }
  [[nodiscard]] TokenId operator[](size_t i) const { return data()[i]; }
  [[nodiscard]] TokenId back() const { return data()[size() - 1]; }

  void push_back(TokenId token) {
    if (heap_.empty() && num_inline_ < kInline) {
      inline_[num_inline_++] = token;
      return;
    }
    if (heap_.empty()) heap_.assign(inline_, inline_ + num_inline_);
    heap_.push_back(token);
  }

  void append(std::span<const TokenId> tokens) {
    for (const TokenId token : tokens) push_back(token);
  }

  void clear() {
    num_inline_ = 0;
    heap_.clear();
  }

  friend bool operator==(const TokenList& a, const TokenList& b) {
    return std::ranges::equal(a, b);
  }

 private:
  std::vector<TokenId> heap_;  // all of them, once they outgrow inline_
  uint32_t num_inline_ = 0;
  TokenId inline_[kInline] = {};
};

}  // namespace dlcore

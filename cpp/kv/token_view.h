#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "dlcore/types.h"

namespace dlcore {

// A sequence's known tokens: prompt, then generated, read as one run without
// copying a long prompt.
struct TokenView {
  std::span<const TokenId> prompt;
  std::span<const TokenId> output;

  [[nodiscard]] int32_t size() const { return static_cast<int32_t>(prompt.size() + output.size()); }

  // Tokens [start, start + scratch.size()); uses `scratch` only where the run
  // crosses from the prompt into the output.
  [[nodiscard]] std::span<const TokenId> Read(size_t start, std::span<TokenId> scratch) const {
    const size_t count = scratch.size();
    if (start + count <= prompt.size()) return prompt.subspan(start, count);
    if (start >= prompt.size()) return output.subspan(start - prompt.size(), count);
    const size_t head = prompt.size() - start;
    std::ranges::copy(prompt.subspan(start), scratch.begin());
    std::ranges::copy(output.first(count - head), scratch.begin() + static_cast<int64_t>(head));
    return scratch;
  }
};

}  // namespace dlcore

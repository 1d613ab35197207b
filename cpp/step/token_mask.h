#pragma once

#include <cstdint>
#include <span>

#include "sched/sequence.h"

namespace dlcore {

// True when the row that samples output index `index` may not take every token.
bool NeedsMask(const Sequence& sequence, int32_t index);

// Bit i of word i/32 = token i allowed: the constraint's mask, allowed_token_ids,
// min_tokens (no stop id yet) and bad_words, all of them.
// REQUIRES: mask.size() == ceil(vocab_size / 32); the tokens the mask depends on
// are known (Sequence::CanPlan)
void BuildMask(const Sequence& sequence, int32_t index, int32_t vocab_size,
               std::span<uint32_t> mask);

}  // namespace dlcore

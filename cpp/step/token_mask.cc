#include "step/token_mask.h"

#include <algorithm>

#include "base/check.h"

namespace dlcore {
namespace {

void Allow(std::span<uint32_t> mask, TokenId id) {
  mask[static_cast<size_t>(id) / 32] |= 1u << (id % 32);
}

void Forbid(std::span<uint32_t> mask, TokenId id) {
  mask[static_cast<size_t>(id) / 32] &= ~(1u << (id % 32));
}

void AllowOnly(std::span<const TokenId> ids, int32_t vocab_size, std::span<uint32_t> mask) {
  std::ranges::fill(mask, ids.empty() ? ~0u : 0u);
  for (const TokenId id : ids) Allow(mask, id);
  if (vocab_size % 32 != 0) mask.back() &= (1u << (vocab_size % 32)) - 1;
}

// True when the generated tokens end with all of `word` but its last token.
bool NearlyComplete(std::span<const TokenId> output, std::span<const TokenId> word) {
  const size_t head = word.size() - 1;
  return head <= output.size() && std::ranges::equal(output.last(head), word.first(head));
}

}  // namespace

bool NeedsMask(const Sequence& sequence, int32_t index) {
  const SamplingParams& p = sequence.sampling();
  return sequence.constraint() != nullptr || !p.allowed_token_ids.empty() || !p.bad_words.empty() ||
         sequence.MasksStopsAt(index);
}

void BuildMask(const Sequence& sequence, int32_t index, int32_t vocab_size,
               std::span<uint32_t> mask) {
  const SamplingParams& p = sequence.sampling();
  AllowOnly(p.allowed_token_ids, vocab_size, mask);
  if (TokenConstraint* rule = sequence.constraint()) {
    const auto words = rule->Mask();
    DLCORE_CHECK(words.size() == mask.size()) << "constraint mask of " << words.size() << " words";
    for (size_t i = 0; i < mask.size(); ++i) mask[i] &= words[i];
  }
  if (sequence.MasksStopsAt(index)) {
    for (const TokenId id : sequence.stop_ids()) Forbid(mask, id);
  }
  for (const auto& word : p.bad_words) {
    if (NearlyComplete(sequence.tokens().output, word)) Forbid(mask, word.back());
  }
}

}  // namespace dlcore

#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "dlcore/types.h"

namespace dlcore {

struct Hash128 {
  uint64_t lo = 0;
  uint64_t hi = 0;

  friend constexpr auto operator<=>(const Hash128&, const Hash128&) = default;
};

// SipHash-c-d with 128 bits of output (Aumasson and Bernstein, "SipHash: a fast
// short-input PRF"; the 128-bit variant of the authors' reference). Keyed, so a
// client that does not know the key cannot craft colliding prompts.
// Exposed with its round counts so that 2-4 can be held against the published
// vectors; dlcore hashes with 1-3.
Hash128 SipHash128(int compression_rounds, int finalization_rounds, uint64_t k0, uint64_t k1,
                   std::span<const std::byte> message);

// The hashes of the prefix cache: SipHash-1-3-128 under one secret key.
// Thread safety: immutable.
class BlockHasher {
 public:
  BlockHasher(uint64_t k0, uint64_t k1) : k0_(k0), k1_(k1) {}

  // The parent of a request's first block: what must be equal, besides tokens,
  // for two requests to share KV. `extra` carries the hashes of whatever else
  // changes a token's KV (LoRA adapter, media).
  [[nodiscard]] Hash128 Root(std::string_view cache_salt,
                             std::span<const Hash128> extra = {}) const;

  // H(parent, tokens): names a block together with everything before it.
  [[nodiscard]] Hash128 Block(const Hash128& parent, std::span<const TokenId> tokens) const;

 private:
  uint64_t k0_;
  uint64_t k1_;
};

// A key nobody can guess, from the operating system.
void DrawHashKey(uint64_t key[2]);

}  // namespace dlcore

template <>
struct std::hash<dlcore::Hash128> {
  size_t operator()(const dlcore::Hash128& h) const noexcept { return h.lo; }
};

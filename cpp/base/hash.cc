#include "base/hash.h"

#include <bit>
#include <cstring>
#include <random>

namespace dlcore {
namespace {

static_assert(std::endian::native == std::endian::little, "SipHash reads little-endian words");

// The four words of SipHash. A message is fed as little-endian 64-bit words;
// the last one carries the length in its top byte.
class SipState {
 public:
  // The constants spell "somepseudorandomlygeneratedbytes"; 0xee selects the
  // 128-bit output.
  SipState(uint64_t k0, uint64_t k1)
      : v0_(k0 ^ 0x736f6d6570736575u),
        v1_(k1 ^ 0x646f72616e646f6du ^ 0xee),
        v2_(k0 ^ 0x6c7967656e657261u),
        v3_(k1 ^ 0x7465646279746573u) {}

  void Feed(uint64_t word, int rounds) {
    v3_ ^= word;
    Rounds(rounds);
    v0_ ^= word;
  }

  Hash128 Finish(int rounds) {
    v2_ ^= 0xee;
    Rounds(rounds);
    const uint64_t lo = v0_ ^ v1_ ^ v2_ ^ v3_;
    v1_ ^= 0xdd;
    Rounds(rounds);
    return {lo, v0_ ^ v1_ ^ v2_ ^ v3_};
  }

 private:
  void Rounds(int rounds) {
    for (int i = 0; i < rounds; ++i) Round();
  }

  void Round() {
    v0_ += v1_;
    v2_ += v3_;
    v1_ = std::rotl(v1_, 13) ^ v0_;
    v3_ = std::rotl(v3_, 16) ^ v2_;
    v0_ = std::rotl(v0_, 32);
    v2_ += v1_;
    v0_ += v3_;
    v1_ = std::rotl(v1_, 17) ^ v2_;
    v3_ = std::rotl(v3_, 21) ^ v0_;
    v2_ = std::rotl(v2_, 32);
  }

  uint64_t v0_, v1_, v2_, v3_;
};

// Feeds the bytes in whole words and returns the last, padded, length-carrying word.
uint64_t FeedBytes(SipState& state, std::span<const std::byte> bytes, int rounds) {
  const size_t whole = bytes.size() / 8 * 8;
  for (size_t i = 0; i < whole; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, 8);
    state.Feed(word, rounds);
  }
  uint64_t tail = 0;
  if (whole < bytes.size()) std::memcpy(&tail, bytes.data() + whole, bytes.size() - whole);
  return tail | (static_cast<uint64_t>(bytes.size()) << 56);
}

}  // namespace

Hash128 SipHash128(int compression_rounds, int finalization_rounds, uint64_t k0, uint64_t k1,
                   std::span<const std::byte> message) {
  SipState state(k0, k1);
  const uint64_t last = FeedBytes(state, message, compression_rounds);
  state.Feed(last, compression_rounds);
  return state.Finish(finalization_rounds);
}

Hash128 BlockHasher::Root(std::string_view cache_salt, std::span<const Hash128> extra) const {
  SipState state(k0_, k1_);
  // The count comes first so that no salt can imitate an extra hash.
  state.Feed(extra.size(), 1);
  for (const Hash128& hash : extra) {
    state.Feed(hash.lo, 1);
    state.Feed(hash.hi, 1);
  }
  state.Feed(FeedBytes(state, std::as_bytes(std::span(cache_salt)), 1), 1);
  return state.Finish(3);
}

Hash128 BlockHasher::Block(const Hash128& parent, std::span<const TokenId> tokens) const {
  SipState state(k0_, k1_);
  state.Feed(parent.lo, 1);
  state.Feed(parent.hi, 1);
  state.Feed(FeedBytes(state, std::as_bytes(tokens), 1), 1);
  return state.Finish(3);
}

void DrawHashKey(uint64_t key[2]) {
  std::random_device source;
  for (int i = 0; i < 2; ++i) {
    key[i] = (static_cast<uint64_t>(source()) << 32) | source();
  }
}

}  // namespace dlcore

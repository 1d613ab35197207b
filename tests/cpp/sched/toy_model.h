#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "dlcore/request.h"

namespace dlcore::testing {

// A deterministic stand-in for a language model, as hashes. The "KV" of position
// p depends on every KV before it, so reading one wrong entry anywhere in the
// context changes every later token.
inline uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = a * 0x9e3779b97f4a7c15u + b + 0x632be59bd9b4e019u;
  x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9u;
  return x ^ (x >> 32);
}

// What position i of the context contributes to the positions after it.
inline uint64_t Contribution(uint64_t kv, int32_t i) {
  return kv * (2 * static_cast<uint64_t>(i) + 1);
}

inline uint64_t KvOf(uint64_t context_sum, TokenId token, int32_t position) {
  return Mix(Mix(context_sum, static_cast<uint64_t>(token)), static_cast<uint64_t>(position));
}

// Everything but the context that decides a sampled token.
struct SamplingInputs {
  float temperature = 0.0f;
  uint64_t seed = 0;
  int32_t sample_position = 0;
  uint64_t counts = 0;  // digest of the penalty history, 0 = no penalties
  uint64_t bias = 0;    // digest of the logit bias
};

inline uint64_t CountsEntry(TokenId token, bool generated) {
  return Mix(static_cast<uint64_t>(token) + 1, generated ? 2 : 1);
}

inline uint64_t BiasEntry(TokenId token, float bias) {
  return Mix(static_cast<uint64_t>(token) + 7, std::bit_cast<uint32_t>(bias));
}

// The next token, or -1 when the mask allows none. Empty mask = all allowed.
inline TokenId Sample(uint64_t kv, const SamplingInputs& in, int32_t vocab_size,
                      std::span<const uint32_t> mask) {
  uint64_t h = kv;
  if (in.temperature > 0) h = Mix(h, Mix(in.seed, static_cast<uint64_t>(in.sample_position)));
  h = Mix(Mix(h, in.counts), in.bias);
  const auto vocab = static_cast<uint64_t>(vocab_size);
  for (uint64_t i = 0; i < vocab; ++i) {
    const uint64_t token = (h + i) % vocab;
    if (mask.empty() || ((mask[token / 32] >> (token % 32)) & 1) != 0) {
      return static_cast<TokenId>(token);
    }
  }
  return -1;
}

inline float LogprobOf(uint64_t kv, TokenId token) {
  return -static_cast<float>(Mix(kv, static_cast<uint64_t>(token)) % 1000);
}

inline int32_t TopIdOf(uint64_t kv, int32_t k) {
  return static_cast<int32_t>(Mix(kv, 99) % 50) + k;
}

}  // namespace dlcore::testing

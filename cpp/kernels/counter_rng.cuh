#pragma once

#include <cstdint>

// Random numbers from (seed, position, token) alone: python/dlcore/ops/counter_rng.py bit for bit.

namespace dlcore::kernels {

__device__ __forceinline__ uint32_t Mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

struct RowKeys {
  uint32_t k1, k2;

  __device__ RowKeys(int64_t seed, int32_t position) {
    const auto low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
    const uint32_t k0 = Mix(Mix(low) ^ high);
    k1 = Mix(k0 + kGolden * (static_cast<uint32_t>(position) + 1));
    k2 = Mix(k1 ^ kGolden);
  }
  __device__ float Gumbel(int32_t token) const {
    const uint32_t bits = Mix(Mix((static_cast<uint32_t>(token) * kGolden) ^ k1) + k2);
    const float u = (static_cast<float>(bits) + 0.5f) * 0x1p-32f;
    return -logf(-log1pf(-fminf(u, 1.0f - 0x1p-24f)));
  }

  static constexpr uint32_t kGolden = 0x9e3779b9u;
};

}  // namespace dlcore::kernels

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace dlcore {

// How long something took, many times over: a histogram over fixed bounds.
struct TimeHistogram {
  // Upper bounds in seconds; one more bucket holds what is above them all.
  static constexpr std::array<double, 16> kBounds = {0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05,
                                                     0.1,    0.3,    0.5,   1.0,   2.5,  5.0,
                                                     10.0,   30.0,   60.0,  120.0};

  std::array<uint64_t, kBounds.size() + 1> counts{};  // per bucket, not cumulative
  double seconds = 0;                                 // sum

  void Observe(double took) {
    const auto bucket = std::ranges::lower_bound(kBounds, took) - kBounds.begin();
    ++counts[static_cast<size_t>(bucket)];
    seconds += took;
  }
};

}  // namespace dlcore

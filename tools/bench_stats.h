#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

#include <benchmark/benchmark.h>

namespace dlcore {

// Times single operations and reports their median beside Google Benchmark's
// mean: the targets are medians.
class LapTimer {
 public:
  explicit LapTimer(benchmark::State* state) : state_(state) { laps_us_.reserve(1 << 16); }

  void Start() { start_ = Clock::now(); }
  void Stop() {
    const std::chrono::duration<double> elapsed = Clock::now() - start_;
    state_->SetIterationTime(elapsed.count());
    laps_us_.push_back(elapsed.count() * 1e6);
  }

  // Adds the counters p50_us, p99_us, and the medians of the first and the last
  // quarter of the run (equal when the cost does not grow).
  void Report() {
    const size_t quarter = laps_us_.size() / 4;
    const auto first = laps_us_.begin();
    state_->counters["p50_first_us"] = Quantile({first, first + static_cast<long>(quarter)}, 0.5);
    state_->counters["p50_last_us"] =
        Quantile({laps_us_.end() - static_cast<long>(quarter), laps_us_.end()}, 0.5);
    state_->counters["p50_us"] = Quantile(laps_us_, 0.5);
    state_->counters["p99_us"] = Quantile(laps_us_, 0.99);
  }

 private:
  using Clock = std::chrono::steady_clock;

  static double Quantile(std::vector<double> laps, double q) {
    if (laps.empty()) return 0;
    const auto at = laps.begin() + static_cast<long>(q * static_cast<double>(laps.size() - 1));
    std::nth_element(laps.begin(), at, laps.end());
    return *at;
  }

  benchmark::State* state_;
  Clock::time_point start_;
  std::vector<double> laps_us_;
};

}  // namespace dlcore

#pragma once

#include <chrono>
#include <thread>

#include <sys/prctl.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dlcore {

// How the loop waits for the device: it spins while the step is likely about to
// end, then naps, which delays a commit by some tens of microseconds at most.
class Backoff {
 public:
  // Naps of this thread end on time: the kernel's default slack is 50 us.
  static void MakeNapsPrecise() { ::prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0); }

  void Pause() {
    if (++num_pauses_ % kPausesPerClock != 0) return CpuRelax();
    if (Clock::now() - start_ > kSpin) std::this_thread::sleep_for(kNap);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int kPausesPerClock = 16;
  static constexpr auto kSpin = std::chrono::microseconds(200);
  static constexpr auto kNap = std::chrono::microseconds(20);

  static void CpuRelax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  Clock::time_point start_ = Clock::now();
  int num_pauses_ = 0;
};

}  // namespace dlcore

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace dlcore {

enum class LeaseState : uint8_t {
  kFilling,         // the owner still writes; what is finished may be read
  kFillingReading,  // kFilling with reads in flight
  kReady,           // all written
  kReading,         // kReady with reads in flight
  kReleasing,       // released; the last read in flight returns the blocks
  kExpiring,        // expired; the last read in flight returns the blocks
  kReleased,        // blocks returned
  kExpired,         // blocks returned
};
inline constexpr size_t kNumLeaseStates = 8;

enum class LeaseAction : uint8_t {
  kFill,       // the last layer, or the last token, was written
  kFirstRead,  // a read begins and none is in flight
  kLastRead,   // the only read in flight ends
  kRelease,    // the reader's ack, or an abort by either side
  kExpire,     // the TTL has passed
};
inline constexpr size_t kNumLeaseActions = 5;

// The whole state machine. Empty = refused.
[[nodiscard]] constexpr std::optional<LeaseState> Next(LeaseState state, LeaseAction action) {
  using enum LeaseState;
  constexpr std::optional<LeaseState> kNo;
  constexpr std::optional<LeaseState> kTable[kNumLeaseStates][kNumLeaseActions] = {
      // clang-format off
      //                    kFill      kFirstRead       kLastRead  kRelease    kExpire
      /* kFilling */        {kReady,   kFillingReading, kNo,       kReleased,  kExpired},
      /* kFillingReading */ {kReading, kNo,             kFilling,  kReleasing, kExpiring},
      /* kReady */          {kNo,      kReading,        kNo,       kReleased,  kExpired},
      /* kReading */        {kNo,      kNo,             kReady,    kReleasing, kExpiring},
      /* kReleasing */      {kNo,      kNo,             kReleased, kNo,        kNo},
      /* kExpiring */       {kNo,      kNo,             kExpired,  kNo,        kNo},
      /* kReleased */       {kNo,      kNo,             kNo,       kNo,        kNo},
      /* kExpired */        {kNo,      kNo,             kNo,       kNo,        kNo},
      // clang-format on
  };
  return kTable[static_cast<size_t>(state)][static_cast<size_t>(action)];
}

[[nodiscard]] constexpr bool IsTerminal(LeaseState state) {
  return state == LeaseState::kReleased || state == LeaseState::kExpired;
}

[[nodiscard]] constexpr bool IsReading(LeaseState state) {
  return state == LeaseState::kFillingReading || state == LeaseState::kReading;
}

[[nodiscard]] constexpr bool IsFilling(LeaseState state) {
  return state == LeaseState::kFilling || state == LeaseState::kFillingReading;
}

[[nodiscard]] constexpr std::string_view Name(LeaseState state) {
  constexpr std::string_view kNames[kNumLeaseStates] = {"filling",  "filling+reading", "ready",
                                                        "reading",  "releasing",       "expiring",
                                                        "released", "expired"};
  return kNames[static_cast<size_t>(state)];
}

}  // namespace dlcore

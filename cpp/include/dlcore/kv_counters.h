#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "dlcore/time_histogram.h"

namespace dlcore {

// Why a reader was turned away.
enum class LeaseRefusal : uint8_t {
  kKey,      // it does not hold the deployment's key
  kUnknown,  // no lease has this id and epoch
  kEnded,    // released or expired
  kOutside,  // a range or layer that is not under the lease
};
inline constexpr size_t kNumLeaseRefusals = 4;

// What became of the leases an engine granted.
struct LeaseCounters {
  uint64_t granted = 0;
  uint64_t released = 0;  // by the reader, or by whoever held its name
  uint64_t aborted = 0;   // by the owner
  uint64_t expired = 0;
  uint64_t bytes = 0;        // read
  uint64_t early_bytes = 0;  // of them, while the owner was still filling the lease
  std::array<uint64_t, kNumLeaseRefusals> refused{};
};

// What became of the migrations an engine asked for.
struct MigrationCounters {
  uint64_t completed = 0;
  uint64_t failed = 0;
  uint64_t aborted = 0;
  uint64_t bytes = 0;        // asked for by migrations that have ended
  uint64_t early_bytes = 0;  // of them, before the owner had written all
  TimeHistogram seconds;     // from Post to the end of completed ones
};

}  // namespace dlcore

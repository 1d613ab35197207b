#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace dlcore {

// An integer that knows what it counts: a BlockId cannot be passed where a
// SlotId is wanted. `-1` means "none" for the signed ids.
template <class Tag, class Int>
struct StrongId {
  Int value{};

  constexpr StrongId() = default;
  constexpr explicit StrongId(Int v) : value(v) {}
  friend constexpr auto operator<=>(StrongId, StrongId) = default;
};

using BlockId = StrongId<struct BlockIdTag, int32_t>;       // index into the KV block pool
using SlotId = StrongId<struct SlotIdTag, int32_t>;         // row of the per-sequence device state
using RequestId = StrongId<struct RequestIdTag, uint64_t>;  // chosen by the front end, unique

inline constexpr BlockId kNoBlock{-1};
inline constexpr SlotId kNoSlot{-1};

using TokenId = int32_t;

// In StepBuffers.token_ids: "the token this sequence sampled in the previous
// step", which the device knows and the CPU does not yet.
inline constexpr TokenId kPendingToken = -1;

}  // namespace dlcore

template <class Tag, class Int>
struct std::hash<dlcore::StrongId<Tag, Int>> {
  size_t operator()(dlcore::StrongId<Tag, Int> id) const noexcept {
    return std::hash<Int>{}(id.value);
  }
};

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dlcore/types.h"

namespace dlcore {

// RequestId -> row of a batch: open addressing in one array that is reused, so
// merging batches allocates nothing in steady state.
class RowIndex {
 public:
  static constexpr size_t kNone = SIZE_MAX;

  void Clear() { ++generation_, size_ = 0; }

  [[nodiscard]] size_t Find(RequestId id) const {
    if (cells_.empty()) return kNone;
    for (size_t i = Home(id);; i = (i + 1) & (cells_.size() - 1)) {
      if (cells_[i].generation != generation_) return kNone;
      if (cells_[i].id == id) return cells_[i].row;
    }
  }

  // REQUIRES: Find(id) == kNone
  void Insert(RequestId id, size_t row) {
    if ((size_ + 1) * 2 > cells_.size()) Grow();
    Place({generation_, id, row});
    ++size_;
  }

 private:
  struct Cell {
    uint64_t generation = 0;  // in use only where it equals the index's
    RequestId id;
    size_t row = 0;
  };

  [[nodiscard]] size_t Home(RequestId id) const {
    return (id.value * 0x9E3779B97F4A7C15ull >> 32) & (cells_.size() - 1);
  }

  void Place(const Cell& cell) {
    size_t i = Home(cell.id);
    while (cells_[i].generation == generation_) i = (i + 1) & (cells_.size() - 1);
    cells_[i] = cell;
  }

  void Grow() {
    std::vector<Cell> old(cells_.empty() ? 64 : cells_.size() * 2);
    old.swap(cells_);
    for (const Cell& cell : old) {
      if (cell.generation == generation_) Place(cell);
    }
  }

  std::vector<Cell> cells_;  // a power of two, at most half full
  uint64_t generation_ = 1;
  size_t size_ = 0;
};

}  // namespace dlcore

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dlcore/output.h"

namespace dlcore {

// An OutputBatch turned on its side: one array per field, which numpy can view
// without a copy. Row i's tokens are token_ids[token_offsets[i] .. token_offsets[i + 1]).
// Immutable once made.
struct OutputArrays {
  explicit OutputArrays(OutputBatch batch);

  [[nodiscard]] size_t size() const { return request_ids.size(); }

  std::vector<uint64_t> request_ids;    // [n]
  std::vector<int32_t> token_offsets;   // [n + 1]
  std::vector<int32_t> token_ids;       // [token_offsets[n]]
  std::vector<uint8_t> finish_reasons;  // [n]
  std::vector<int32_t> stop_tokens;     // [n], -1 = none
  std::vector<int32_t> cached_tokens;   // [n]
  OutputBatch batch;                    // logprobs and errors stay where they were
};

}  // namespace dlcore

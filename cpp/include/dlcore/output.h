#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dlcore/request.h"
#include "dlcore/token_list.h"
#include "dlcore/transport.h"
#include "dlcore/types.h"

namespace dlcore {

// Log-probabilities of one generated (or prompt) token.
struct TokenLogprobs {
  float logprob = 0.0f;
  int32_t rank = 0;              // 1 = most likely
  std::vector<TokenId> top_ids;  // most likely first, as many as asked for
  std::vector<float> top_logprobs;
};

// The KV of a sequence, kept for a reader.
struct KvLease {
  LeaseRef lease;
  int32_t num_tokens = 0;  // whose KV is written, or will be
};

// What one sequence got in one step (or since the front end last looked).
struct SequenceOutput {
  RequestId id;
  TokenList tokens;
  std::vector<TokenLogprobs> logprobs;         // one per token, where asked for
  std::vector<TokenLogprobs> prompt_logprobs;  // prompt positions finished since the last output
  FinishReason finish_reason = FinishReason::kNone;
  TokenId stop_token = -1;          // the id that ended it (kStop)
  int32_t num_cached_tokens = 0;    // prompt tokens not computed here: cached or pulled
  std::string error;                // kError: why
  std::optional<KvLease> kv_lease;  // first output of a request with hold_kv
};

// All outputs of one step, handed over at once.
struct OutputBatch {
  std::vector<SequenceOutput> outputs;
};

}  // namespace dlcore

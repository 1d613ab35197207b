#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dlcore/transport.h"
#include "dlcore/types.h"

namespace dlcore {

// How one sequence is sampled. Field names and defaults are those of vLLM's
// SamplingParams; stop *strings* live in the front end, which owns the text.
struct SamplingParams {
  float temperature = 1.0f;  // 0 = greedy
  float top_p = 1.0f;        // (0, 1]
  float min_p = 0.0f;        // [0, 1]
  int32_t top_k = 0;         // 0 = off
  uint64_t seed = 0;         // the front end draws one when the client gave none
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  float repetition_penalty = 1.0f;
  int32_t max_tokens = 16;
  int32_t min_tokens = 0;
  bool ignore_eos = false;
  std::vector<TokenId> stop_token_ids;  // EOS ids of the model are added by the engine
  std::vector<std::pair<TokenId, float>> logit_bias;
  std::vector<TokenId> allowed_token_ids;       // empty = all
  std::vector<std::vector<TokenId>> bad_words;  // token sequences never completed
  int32_t logprobs = -1;  // -1 = off, 0 = the sampled token's alone, k = top k too
  int32_t prompt_logprobs = -1;

  [[nodiscard]] bool greedy() const { return temperature == 0.0f; }
};

// A grammar (or any other rule) that says which tokens may come next. Masks are
// computed off the engine thread; a constrained sequence is planned only when
// its next mask is ready, so no other sequence ever waits for it.
// Thread safety: Advance and the getters are called by the engine thread alone;
// the implementation hands work to its own threads.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  // `tokens` were generated; start computing the mask that follows them.
  virtual void Advance(std::span<const TokenId> tokens) = 0;
  // True when Mask() holds what follows every token given to Advance.
  [[nodiscard]] virtual bool Ready() const = 0;
  // Bit i of word i/32 set = token i allowed. [ceil(vocab_size / 32)] uint32
  [[nodiscard]] virtual std::span<const uint32_t> Mask() const = 0;
  // True when the rule is satisfied and nothing may follow but a stop token.
  [[nodiscard]] virtual bool Finished() const = 0;
};

// KV of the prompt that another engine computed and holds under a lease.
struct KvSource {
  std::vector<MigrationSource> sources;  // one per TP rank of that engine
  int32_t num_tokens = 0;                // of prompt + resumed output, from the first one on
  // What a failed migration does: compute the prompt here, or end the request
  // with kError "migration_failed: why" and leave the lease for another attempt.
  bool recompute_on_failure = true;
};

struct Request {
  RequestId id;
  std::vector<TokenId> prompt;  // 1 .. max_model_len - 1 tokens
  SamplingParams sampling;
  int32_t priority = 0;    // smaller runs first; ties by arrival
  std::string cache_salt;  // prefix-cache hits only between equal salts
  std::shared_ptr<TokenConstraint> constraint;
  // Output tokens another engine generated before this one took over. They count as this
  // request's own (max_tokens, min_tokens, penalties, stops, bad_words, the constraint); outputs
  // hold only what follows them. Fewer than max_tokens.
  std::vector<TokenId> resume_token_ids;
  std::optional<KvSource> kv_source;  // decode: pull this instead of computing it
  // Prefill: from its admission on, the request's KV is under a lease, which an
  // output names as soon as it exists. Readers follow the computation. The lease
  // outlives a request that ends by itself; an abort or an error ends it too.
  // REQUIRES: one token is left to generate
  bool hold_kv = false;
};

enum class FinishReason : uint8_t {
  kNone = 0,    // still running
  kStop = 1,    // EOS or a stop id (reported in stop_token)
  kLength = 2,  // max_tokens or max_model_len
  kAbort = 3,   // the client went away or asked
  kError = 4,   // the engine failed this request; the message says why
};

}  // namespace dlcore

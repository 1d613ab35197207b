#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dlcore/step_layout.h"

namespace dlcore {

enum class CacheKind : uint8_t {
  kPaged,   // one entry per token, forever: full attention, MLA latent, index keys
  kWindow,  // one entry per token of a sliding window
  kState,   // one fixed slot per sequence (recurrent state), plus checkpoints
};

// One kind of cache a model keeps. C++ knows kinds and bytes only.
struct CacheGroupSpec {
  CacheKind kind = CacheKind::kPaged;
  int32_t num_layers = 0;
  int64_t bytes_per_block_per_layer = 0;
  int32_t window = 0;  // kWindow: tokens kept
};

struct EngineOptions {
  StepLimits limits;
  int32_t num_kv_blocks = 0;
  std::vector<CacheGroupSpec> cache_groups;
  bool enable_prefix_caching = true;
  bool enable_chunked_prefill = true;
  // A prefill chunk longer than this is split even when the token budget has
  // room, so that decodes beside it keep their pace. 0 = no such limit.
  int32_t long_prefill_token_threshold = 0;
  // Prompt tokens of one step while other sequences decode: bounds the gap that
  // prefill puts between their tokens. 0 = no limit. Chunked prefill only.
  int32_t max_prefill_tokens_beside_decodes = 0;
  // A step that decodes is filled with prompts up to a multiple of these tokens, as few as its
  // decodes warrant (policy.cc): a number whose products the device is quick with. 0 = up to
  // max_num_batched_tokens. Chunked prefill only.
  int32_t mixed_step_tokens = 0;
  // False: mixed_step_tokens does not hold for a prompt whose answer may be the last to end, as
  // whoever waits for all of them wants.
  bool hold_back_last_answers = true;
  int32_t max_waiting_requests = 0;  // 0 = unbounded
  // Plan a step before the tokens of the one before are known. Unset = where
  // the device runs beside the CPU.
  std::optional<bool> async_scheduling;
  std::vector<int32_t> eos_token_ids;
  uint64_t hash_key[2] = {0, 0};      // both 0 = drawn at random at start
  double watchdog_timeout_s = 120.0;  // 0 = off

  // OK, or InvalidArgument naming the field and the fix.
  [[nodiscard]] class Status Validate() const;
};

}  // namespace dlcore

#include "dlcore/options.h"

#include <string>

#include "dlcore/status.h"
#include "kv/cache_group.h"

namespace dlcore {
namespace {

Status RequirePositive(const char* field, int32_t value) {
  if (value > 0) return Status::Ok();
  return Status::InvalidArgument(std::string(field) + " must be positive, not " +
                                 std::to_string(value));
}

Status ValidateLimits(const StepLimits& limits) {
  const std::pair<const char*, int32_t> positive[] = {
      {"max_num_batched_tokens", limits.max_num_batched_tokens},
      {"max_num_seqs", limits.max_num_seqs},
      {"block_size", limits.block_size},
      {"vocab_size", limits.vocab_size},
      {"max_logprobs", limits.max_logprobs},
  };
  for (const auto& [field, value] : positive) {
    const Status status = RequirePositive(field, value);
    if (!status.ok()) return status;
  }
  if (limits.max_model_len < 2) {
    return Status::InvalidArgument("max_model_len must be at least 2: one token in, one out");
  }
  if (limits.vocab_size > kHistoryOutputFlag) {
    return Status::InvalidArgument("vocab_size must be below 2^30");
  }
  if (limits.max_bias_entries < 0) {
    return Status::InvalidArgument("max_bias_entries must be >= 0");
  }
  const int64_t table = int64_t{limits.max_num_seqs} * limits.max_blocks_per_seq();
  if (table > INT32_MAX) {
    return Status::InvalidArgument(
        "max_num_seqs * max_model_len / block_size exceeds 2^31 block-table entries; lower one");
  }
  return Status::Ok();
}

}  // namespace

Status EngineOptions::Validate() const {
  Status status = ValidateLimits(limits);
  if (status.ok()) status = RequirePositive("num_kv_blocks", num_kv_blocks);
  if (status.ok()) status = ValidateCacheGroups(cache_groups);
  if (!status.ok()) return status;
  if (int64_t{num_kv_blocks} * limits.block_size > INT32_MAX) {
    return Status::InvalidArgument(
        "num_kv_blocks * block_size exceeds 2^31 KV slots; lower num_kv_blocks");
  }
  if (!enable_chunked_prefill && limits.max_num_batched_tokens < limits.max_model_len) {
    return Status::InvalidArgument(
        "max_num_batched_tokens (" + std::to_string(limits.max_num_batched_tokens) +
        ") must be >= max_model_len (" + std::to_string(limits.max_model_len) +
        ") when enable_chunked_prefill is false: raise it or enable chunked prefill");
  }
  if (max_prefill_tokens_beside_decodes < 0) {
    return Status::InvalidArgument("max_prefill_tokens_beside_decodes must be >= 0 (0 = no limit)");
  }
  if (mixed_step_tokens < 0) {
    return Status::InvalidArgument("mixed_step_tokens must be >= 0 (0 = no such limit)");
  }
  if (long_prefill_token_threshold < 0) {
    return Status::InvalidArgument("long_prefill_token_threshold must be >= 0 (0 = off)");
  }
  if (max_waiting_requests < 0) {
    return Status::InvalidArgument("max_waiting_requests must be >= 0 (0 = unbounded)");
  }
  if (!(watchdog_timeout_s >= 0)) {
    return Status::InvalidArgument("watchdog_timeout_s must be >= 0 (0 = off)");
  }
  for (const int32_t id : eos_token_ids) {
    if (id < 0 || id >= limits.vocab_size) {
      return Status::InvalidArgument("eos_token_ids holds " + std::to_string(id) +
                                     "; ids must be in [0, vocab_size)");
    }
  }
  return Status::Ok();
}

}  // namespace dlcore

#include "sched/validate.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <string>

namespace dlcore {
namespace {

Status Bad(const std::string& message) { return Status::InvalidArgument(message); }

// Written so that NaN is out of every range.
bool InRange(float x, float low, float high) { return x >= low && x <= high; }

Status CheckIds(const char* field, std::span<const TokenId> ids, int32_t vocab_size) {
  // One pass without a branch per token: prompts are long.
  uint32_t largest = 0;
  for (const TokenId id : ids) largest = std::max(largest, static_cast<uint32_t>(id));
  if (ids.empty() || largest < static_cast<uint32_t>(vocab_size)) return Status::Ok();
  return Bad(std::string(field) + " holds token id " +
             std::to_string(static_cast<int32_t>(largest)) + "; ids must be in [0, " +
             std::to_string(vocab_size) + ")");
}

Status CheckPrompt(const Request& request, const EngineOptions& options) {
  const auto length = static_cast<int64_t>(request.prompt.size());
  const StepLimits& limits = options.limits;
  if (length == 0) return Bad("prompt is empty; it needs at least one token");
  if (length >= limits.max_model_len) {
    return Bad("prompt has " + std::to_string(length) + " tokens; max_model_len is " +
               std::to_string(limits.max_model_len) +
               " and one must be left to generate: shorten the prompt or raise max_model_len");
  }
  const int64_t capacity = int64_t{options.num_kv_blocks} * limits.block_size;
  if (length > capacity) {
    return Bad("prompt has " + std::to_string(length) + " tokens; the KV cache holds " +
               std::to_string(capacity) + ": shorten the prompt or raise num_kv_blocks");
  }
  return CheckIds("prompt", request.prompt, limits.vocab_size);
}

// What was generated elsewhere must leave something to generate here.
Status CheckResumed(const Request& request, const EngineOptions& options) {
  const auto& resumed = request.resume_token_ids;
  if (resumed.empty()) return Status::Ok();
  const auto count = static_cast<int64_t>(resumed.size());
  if (count >= request.sampling.max_tokens) {
    return Bad("resume_token_ids has " + std::to_string(count) + " tokens and max_tokens is " +
               std::to_string(request.sampling.max_tokens) +
               ": nothing is left to generate; do not resume a finished request");
  }
  const int64_t total = static_cast<int64_t>(request.prompt.size()) + count;
  if (total >= options.limits.max_model_len) {
    return Bad("resume_token_ids and the prompt have " + std::to_string(total) +
               " tokens together; max_model_len is " +
               std::to_string(options.limits.max_model_len) +
               " and one must be left to generate: resume on an engine with the first one's "
               "max_model_len");
  }
  return CheckIds("resume_token_ids", resumed, options.limits.vocab_size);
}

// What is lent has all its blocks from the start.
Status CheckLent(const Request& request) {
  const auto left =
      request.sampling.max_tokens - static_cast<int64_t>(request.resume_token_ids.size());
  if (!request.hold_kv || left == 1) return Status::Ok();
  return Bad("hold_kv: max_tokens must leave one token to generate, not " + std::to_string(left));
}

Status CheckNumbers(const SamplingParams& p) {
  if (!(p.temperature >= 0.0f) || std::isinf(p.temperature)) {
    return Bad("temperature must be a finite number >= 0");
  }
  if (!(p.top_p > 0.0f && p.top_p <= 1.0f)) return Bad("top_p must be in (0, 1]");
  if (!InRange(p.min_p, 0.0f, 1.0f)) return Bad("min_p must be in [0, 1]");
  if (p.top_k < 0) return Bad("top_k must be >= 0 (0 = off)");
  if (!InRange(p.presence_penalty, -2.0f, 2.0f)) {
    return Bad("presence_penalty must be in [-2, 2]");
  }
  if (!InRange(p.frequency_penalty, -2.0f, 2.0f)) {
    return Bad("frequency_penalty must be in [-2, 2]");
  }
  if (!(p.repetition_penalty > 0.0f) || std::isinf(p.repetition_penalty)) {
    return Bad("repetition_penalty must be a finite number > 0");
  }
  if (p.max_tokens < 1) return Bad("max_tokens must be >= 1");
  if (p.min_tokens < 0 || p.min_tokens > p.max_tokens) {
    return Bad("min_tokens must be in [0, max_tokens]");
  }
  return Status::Ok();
}

Status CheckLogprobs(const SamplingParams& p, const StepLimits& limits) {
  const std::string most = std::to_string(limits.max_logprobs);
  if (p.logprobs < -1 || p.logprobs > limits.max_logprobs) {
    return Bad("logprobs must be in [0, " + most + "], or -1 for none (max_logprobs is " + most +
               ")");
  }
  if (p.prompt_logprobs < -1 || p.prompt_logprobs > limits.max_logprobs) {
    return Bad("prompt_logprobs must be in [0, " + most + "], or -1 for none (max_logprobs is " +
               most + ")");
  }
  return Status::Ok();
}

Status CheckBias(const SamplingParams& p, const StepLimits& limits) {
  if (p.logit_bias.size() > static_cast<size_t>(limits.max_bias_entries)) {
    return Bad("logit_bias has " + std::to_string(p.logit_bias.size()) + " entries; at most " +
               std::to_string(limits.max_bias_entries) + " are allowed");
  }
  for (const auto& [id, bias] : p.logit_bias) {
    if (!std::isfinite(bias)) {
      return Bad("logit_bias of token " + std::to_string(id) + " must be finite");
    }
    const Status status = CheckIds("logit_bias", {&id, 1}, limits.vocab_size);
    if (!status.ok()) return status;
  }
  return Status::Ok();
}

Status CheckTokenLists(const SamplingParams& p, int32_t vocab_size) {
  Status status = CheckIds("stop_token_ids", p.stop_token_ids, vocab_size);
  if (status.ok()) status = CheckIds("allowed_token_ids", p.allowed_token_ids, vocab_size);
  for (size_t i = 0; status.ok() && i < p.bad_words.size(); ++i) {
    if (p.bad_words[i].empty()) return Bad("bad_words holds an empty word; remove it");
    status = CheckIds("bad_words", p.bad_words[i], vocab_size);
  }
  return status;
}

// min_tokens must leave something to sample.
Status CheckAllowed(const SamplingParams& p, const EngineOptions& options) {
  if (p.allowed_token_ids.empty() || p.min_tokens == 0) return Status::Ok();
  const auto stops = [&](TokenId id) {
    const auto& eos = options.eos_token_ids;
    return std::ranges::find(p.stop_token_ids, id) != p.stop_token_ids.end() ||
           (!p.ignore_eos && std::ranges::find(eos, id) != eos.end());
  };
  if (!std::ranges::all_of(p.allowed_token_ids, stops)) return Status::Ok();
  return Bad(
      "allowed_token_ids holds only stop tokens, which min_tokens forbids; lower min_tokens");
}

}  // namespace

Status ValidateRequest(const Request& request, const EngineOptions& options) {
  const SamplingParams& p = request.sampling;
  Status status = CheckPrompt(request, options);
  if (status.ok()) status = CheckNumbers(p);
  if (status.ok()) status = CheckResumed(request, options);
  if (status.ok()) status = CheckLent(request);
  if (status.ok()) status = CheckLogprobs(p, options.limits);
  if (status.ok()) status = CheckBias(p, options.limits);
  if (status.ok()) status = CheckTokenLists(p, options.limits.vocab_size);
  if (status.ok()) status = CheckAllowed(p, options);
  return status;
}

}  // namespace dlcore

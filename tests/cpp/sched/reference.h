#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "dlcore/options.h"
#include "dlcore/request.h"
#include "tests/cpp/sched/toy_model.h"

namespace dlcore::testing {

struct Answer {
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  std::vector<float> prompt_logprobs;
  FinishReason reason = FinishReason::kNone;
};

// The plain way to answer a request: one sequence, one token at a time, no
// cache, no batch. Written apart from the scheduler and the step builder.
class Reference {
 public:
  explicit Reference(const EngineOptions& options) : options_(options) {}

  // `rule_allows(generated, token)` stands for a constraint; null = none.
  using Rule = bool (*)(const std::vector<TokenId>& generated, TokenId token);

  Answer Run(const Request& request, Rule rule) const {
    const SamplingParams& p = request.sampling;
    Answer answer;
    uint64_t sum = 0;
    uint64_t counts = 0;
    int32_t length = 0;
    uint64_t kv = 0;
    const auto feed = [&](TokenId token, bool generated) {
      kv = KvOf(sum, token, length);
      sum += Contribution(kv, length++);
      counts += CountsEntry(token, generated);
    };
    for (size_t i = 0; i < request.prompt.size(); ++i) {
      feed(request.prompt[i], false);
      if (p.prompt_logprobs >= 0 && i + 1 < request.prompt.size()) {
        answer.prompt_logprobs.push_back(LogprobOf(kv, request.prompt[i + 1]));
      }
    }
    while (answer.reason == FinishReason::kNone) {
      SamplingInputs in{p.temperature, p.seed, length, 0, 0};
      if (p.presence_penalty != 0 || p.frequency_penalty != 0 || p.repetition_penalty != 1) {
        in.counts = counts;
      }
      for (const auto& [token, bias] : p.logit_bias) in.bias += BiasEntry(token, bias);
      const TokenId token =
          Sample(kv, in, options_.limits.vocab_size, MaskOf(request, answer.tokens, rule));
      if (token < 0) {
        answer.reason = FinishReason::kError;
        break;
      }
      if (p.logprobs >= 0) answer.logprobs.push_back(LogprobOf(kv, token));
      answer.tokens.push_back(token);
      const auto generated = static_cast<int32_t>(answer.tokens.size());
      if (generated > p.min_tokens && Stops(p, token)) {
        answer.reason = FinishReason::kStop;
      } else if (generated == p.max_tokens || length + 1 == options_.limits.max_model_len) {
        answer.reason = FinishReason::kLength;
      }
      feed(token, true);
    }
    return answer;
  }

 private:
  [[nodiscard]] bool Stops(const SamplingParams& p, TokenId token) const {
    const auto has = [token](const auto& ids) {
      return std::ranges::find(ids, token) != ids.end();
    };
    return has(p.stop_token_ids) || (!p.ignore_eos && has(options_.eos_token_ids));
  }

  [[nodiscard]] bool Allowed(const Request& request, const std::vector<TokenId>& generated,
                             TokenId token, Rule rule) const {
    const SamplingParams& p = request.sampling;
    if (rule != nullptr && !rule(generated, token)) return false;
    const auto& allowed = p.allowed_token_ids;
    if (!allowed.empty() && std::ranges::find(allowed, token) == allowed.end()) return false;
    if (static_cast<int32_t>(generated.size()) < p.min_tokens && Stops(p, token)) return false;
    for (const auto& word : p.bad_words) {
      std::vector<TokenId> end = generated;
      end.push_back(token);
      if (end.size() >= word.size() && std::equal(word.rbegin(), word.rend(), end.rbegin())) {
        return false;
      }
    }
    return true;
  }

  [[nodiscard]] std::vector<uint32_t> MaskOf(const Request& request,
                                             const std::vector<TokenId>& generated,
                                             Rule rule) const {
    const int32_t vocab = options_.limits.vocab_size;
    std::vector<uint32_t> mask(static_cast<size_t>(options_.limits.mask_words()));
    for (TokenId t = 0; t < vocab; ++t) {
      if (Allowed(request, generated, t, rule)) mask[static_cast<size_t>(t) / 32] |= 1u << (t % 32);
    }
    return mask;
  }

  EngineOptions options_;
};

}  // namespace dlcore::testing

#include "sched/policy.h"

#include <algorithm>
#include <limits>

namespace dlcore {
namespace {

// Of a step for each of its decodes: what a step takes grows with the decodes, and so may what
// prompts add.
constexpr int64_t kTokensPerDecode = 3;

int32_t PromptRows(const Sequence& s, int32_t end) {
  return std::max(0, std::min(end, s.prompt_rows_end()) - s.next_prompt_row());
}

}  // namespace

ChunkPolicy::ChunkPolicy(const EngineOptions& options)
    : whole_{options.limits.max_num_batched_tokens, options.limits.max_num_seqs,
             options.limits.max_history_entries(), options.limits.max_block_updates()},
      chunked_(options.enable_chunked_prefill),
      long_prefill_(options.long_prefill_token_threshold),
      beside_decodes_(options.max_prefill_tokens_beside_decodes),
      mixed_step_(options.mixed_step_tokens) {}

void ChunkPolicy::BesideDecodes(StepRoom* room, bool hold_back) const {
  if (!chunked_) return;
  if (mixed_step_ > 0 && hold_back) {
    const int64_t decodes = whole_.tokens - room->tokens;
    const int64_t units = (decodes * kTokensPerDecode + mixed_step_ - 1) / mixed_step_;
    const int64_t filled = units * mixed_step_;
    room->tokens = static_cast<int32_t>(std::min<int64_t>(room->tokens, filled - decodes));
  }
  if (beside_decodes_ > 0) room->tokens = std::min(room->tokens, beside_decodes_);
}

bool ChunkPolicy::CanSample(const Sequence& s, const StepRoom& room) const {
  if (s.owes_history() && s.num_known() > room.history) return false;
  return s.constraint() == nullptr || s.constraint()->Ready();
}

Chunk ChunkPolicy::Fit(const Sequence& s, const StepRoom& room) const {
  const int32_t start = s.num_planned();
  const int32_t wanted = s.num_to_plan();
  int32_t n = std::min(wanted, room.tokens);
  if (chunked_ && long_prefill_ > 0) n = std::min(n, long_prefill_);
  // Rows of prompt logprobs are few; they bound the chunk.
  if (PromptRows(s, start + n) > room.rows) n = s.next_prompt_row() + room.rows - start;
  // A chunk's rows are its last tokens; behind a resumed request's are those of its output.
  if (s.num_known() > s.prompt_len() && PromptRows(s, start + n) > 0) {
    n = std::min(n, s.prompt_rows_end() - start);
  }
  // Reaching the end means sampling, which needs a row, its mask and its history.
  if (n == wanted && (PromptRows(s, start + n) + 1 > room.rows || !CanSample(s, room))) --n;
  // Without chunking a prompt goes whole, unless its own rows cannot fit one step.
  const bool may_cut = chunked_ || s.prompt_rows_end() > 0;
  if (n <= 0 || (n < wanted && !may_cut)) return {};

  const bool samples = n == wanted;
  return {n, samples, PromptRows(s, start + n), samples && s.owes_history() ? s.num_known() : 0};
}

}  // namespace dlcore

#include <optional>
#include <tuple>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind/bind.h"
#include "dlcore/options.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dlcore {
namespace {

using GroupTuple = std::tuple<std::string, int32_t, int64_t, int32_t>;

CacheGroupSpec ToGroup(const GroupTuple& group) {
  const auto& [kind, num_layers, bytes, window] = group;
  CacheGroupSpec spec{CacheKind::kPaged, num_layers, bytes, window};
  if (kind == "paged") return spec;
  spec.kind = CacheKind::kWindow;
  if (kind == "window") return spec;
  spec.kind = CacheKind::kState;
  if (kind == "state") return spec;
  throw nb::value_error(
      ("cache_groups: kind must be 'paged', 'window' or 'state', got '" + kind + "'").c_str());
}

void Construct(EngineOptions* self, int32_t max_num_batched_tokens, int32_t max_num_seqs,
               int32_t max_model_len, int32_t block_size, int32_t vocab_size, int32_t num_kv_blocks,
               const std::vector<GroupTuple>& cache_groups, int32_t max_logprobs,
               int32_t max_bias_entries, bool enable_prefix_caching, bool enable_chunked_prefill,
               int32_t long_prefill_token_threshold, int32_t max_prefill_tokens_beside_decodes,
               int32_t mixed_step_tokens, bool hold_back_last_answers, int32_t max_waiting_requests,
               std::optional<bool> async_scheduling, std::vector<TokenId> eos_token_ids,
               std::pair<uint64_t, uint64_t> hash_key, double watchdog_timeout_s) {
  EngineOptions options;
  options.limits = {max_num_batched_tokens, max_num_seqs,    max_model_len, block_size, vocab_size,
                    max_logprobs,           max_bias_entries};
  options.num_kv_blocks = num_kv_blocks;
  for (const GroupTuple& group : cache_groups) options.cache_groups.push_back(ToGroup(group));
  options.enable_prefix_caching = enable_prefix_caching;
  options.enable_chunked_prefill = enable_chunked_prefill;
  options.long_prefill_token_threshold = long_prefill_token_threshold;
  options.max_prefill_tokens_beside_decodes = max_prefill_tokens_beside_decodes;
  options.mixed_step_tokens = mixed_step_tokens;
  options.hold_back_last_answers = hold_back_last_answers;
  options.max_waiting_requests = max_waiting_requests;
  options.async_scheduling = async_scheduling;
  options.eos_token_ids = std::move(eos_token_ids);
  options.hash_key[0] = hash_key.first;
  options.hash_key[1] = hash_key.second;
  options.watchdog_timeout_s = watchdog_timeout_s;
  ThrowIfError(options.Validate());
  new (self) EngineOptions(std::move(options));
}

template <auto Member>
int32_t Limit(const EngineOptions& options) {
  return options.limits.*Member;
}

}  // namespace

void BindOptions(nb::module_& m) {
  using O = EngineOptions;
  const O d;
  nb::class_<O>(m, "EngineOptions",
                "Sizes and switches of one engine (cpp/include/dlcore/options.h).\n"
                "cache_groups: (kind, num_layers, bytes_per_block_per_layer, window), where kind\n"
                "is 'paged', 'window' or 'state'. Raises ValueError naming the field.")
      .def("__init__", &Construct, nb::kw_only(), "max_num_batched_tokens"_a, "max_num_seqs"_a,
           "max_model_len"_a, "block_size"_a, "vocab_size"_a, "num_kv_blocks"_a, "cache_groups"_a,
           "max_logprobs"_a = d.limits.max_logprobs,
           "max_bias_entries"_a = d.limits.max_bias_entries,
           "enable_prefix_caching"_a = d.enable_prefix_caching,
           "enable_chunked_prefill"_a = d.enable_chunked_prefill,
           "long_prefill_token_threshold"_a = d.long_prefill_token_threshold,
           "max_prefill_tokens_beside_decodes"_a = d.max_prefill_tokens_beside_decodes,
           "mixed_step_tokens"_a = d.mixed_step_tokens,
           "hold_back_last_answers"_a = d.hold_back_last_answers,
           "max_waiting_requests"_a = d.max_waiting_requests, "async_scheduling"_a = nb::none(),
           "eos_token_ids"_a = nb::make_tuple(), "hash_key"_a = nb::make_tuple(0, 0),
           "watchdog_timeout_s"_a = d.watchdog_timeout_s)
      .def_prop_ro("max_num_batched_tokens", &Limit<&StepLimits::max_num_batched_tokens>)
      .def_prop_ro("max_num_seqs", &Limit<&StepLimits::max_num_seqs>)
      .def_prop_ro("max_model_len", &Limit<&StepLimits::max_model_len>)
      .def_prop_ro("max_blocks_per_seq", [](const O& o) { return o.limits.max_blocks_per_seq(); })
      .def_prop_ro("block_size", &Limit<&StepLimits::block_size>)
      .def_prop_ro("vocab_size", &Limit<&StepLimits::vocab_size>)
      .def_prop_ro("max_logprobs", &Limit<&StepLimits::max_logprobs>)
      .def_ro("num_kv_blocks", &O::num_kv_blocks)
      .def_ro("async_scheduling", &O::async_scheduling)
      .def_ro("eos_token_ids", &O::eos_token_ids);
}

}  // namespace dlcore

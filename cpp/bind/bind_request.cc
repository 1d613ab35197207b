#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include "bind/bind.h"
#include "dlcore/request.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dlcore {
namespace {

using Bias = std::vector<std::pair<TokenId, float>>;
using Words = std::vector<std::vector<TokenId>>;

void Construct(SamplingParams* self, float temperature, float top_p, float min_p, int32_t top_k,
               uint64_t seed, float presence_penalty, float frequency_penalty,
               float repetition_penalty, int32_t max_tokens, int32_t min_tokens, bool ignore_eos,
               std::vector<TokenId> stop_token_ids, Bias logit_bias,
               std::vector<TokenId> allowed_token_ids, Words bad_words, int32_t logprobs,
               int32_t prompt_logprobs) {
  new (self) SamplingParams{temperature,
                            top_p,
                            min_p,
                            top_k,
                            seed,
                            presence_penalty,
                            frequency_penalty,
                            repetition_penalty,
                            max_tokens,
                            min_tokens,
                            ignore_eos,
                            std::move(stop_token_ids),
                            std::move(logit_bias),
                            std::move(allowed_token_ids),
                            std::move(bad_words),
                            logprobs,
                            prompt_logprobs};
}

}  // namespace

void BindRequest(nb::module_& m) {
  using P = SamplingParams;
  const P d;
  nb::class_<P>(m, "SamplingParams",
                "How one sequence is sampled (cpp/include/dlcore/request.h). Values are\n"
                "checked when a request is submitted.")
      .def("__init__", &Construct, nb::kw_only(), "temperature"_a = d.temperature,
           "top_p"_a = d.top_p, "min_p"_a = d.min_p, "top_k"_a = d.top_k, "seed"_a = d.seed,
           "presence_penalty"_a = d.presence_penalty, "frequency_penalty"_a = d.frequency_penalty,
           "repetition_penalty"_a = d.repetition_penalty, "max_tokens"_a = d.max_tokens,
           "min_tokens"_a = d.min_tokens, "ignore_eos"_a = d.ignore_eos,
           "stop_token_ids"_a = nb::make_tuple(), "logit_bias"_a = nb::make_tuple(),
           "allowed_token_ids"_a = nb::make_tuple(), "bad_words"_a = nb::make_tuple(),
           "logprobs"_a = d.logprobs, "prompt_logprobs"_a = d.prompt_logprobs)
      .def_rw("temperature", &P::temperature)
      .def_rw("top_p", &P::top_p)
      .def_rw("min_p", &P::min_p)
      .def_rw("top_k", &P::top_k)
      .def_rw("seed", &P::seed)
      .def_rw("presence_penalty", &P::presence_penalty)
      .def_rw("frequency_penalty", &P::frequency_penalty)
      .def_rw("repetition_penalty", &P::repetition_penalty)
      .def_rw("max_tokens", &P::max_tokens)
      .def_rw("min_tokens", &P::min_tokens)
      .def_rw("ignore_eos", &P::ignore_eos)
      .def_rw("stop_token_ids", &P::stop_token_ids)
      .def_rw("logit_bias", &P::logit_bias)
      .def_rw("allowed_token_ids", &P::allowed_token_ids)
      .def_rw("bad_words", &P::bad_words)
      .def_rw("logprobs", &P::logprobs)
      .def_rw("prompt_logprobs", &P::prompt_logprobs);
}

}  // namespace dlcore

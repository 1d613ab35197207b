#include <optional>
#include <tuple>
#include <utility>

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind/bind.h"
#include "bind/output_arrays.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dlcore {

OutputArrays::OutputArrays(OutputBatch source) : batch(std::move(source)) {
  const size_t rows = batch.outputs.size();
  request_ids.reserve(rows);
  token_offsets.reserve(rows + 1);
  finish_reasons.reserve(rows);
  stop_tokens.reserve(rows);
  cached_tokens.reserve(rows);
  token_offsets.push_back(0);
  for (const SequenceOutput& row : batch.outputs) {
    request_ids.push_back(row.id.value);
    token_ids.insert(token_ids.end(), row.tokens.begin(), row.tokens.end());
    token_offsets.push_back(static_cast<int32_t>(token_ids.size()));
    finish_reasons.push_back(static_cast<uint8_t>(row.finish_reason));
    stop_tokens.push_back(row.stop_token);
    cached_tokens.push_back(row.num_cached_tokens);
  }
}

namespace {

template <class T>
using View = nb::ndarray<nb::numpy, const T, nb::ndim<1>>;

template <auto Member>
auto ViewOf(const OutputArrays& self) {
  const auto& values = self.*Member;
  using T = typename std::remove_cvref_t<decltype(values)>::value_type;
  return View<T>(values.data(), {values.size()});  // reference_internal keeps `self` alive
}

const SequenceOutput& RowAt(const OutputArrays& self, int64_t row) {
  if (row < 0 || row >= static_cast<int64_t>(self.size())) {
    throw nb::index_error(
        ("row " + std::to_string(row) + " of a batch of " + std::to_string(self.size())).c_str());
  }
  return self.batch.outputs[static_cast<size_t>(row)];
}

using LeaseTuple = std::tuple<uint64_t, uint64_t, int32_t>;
using LogprobTuple = std::tuple<float, int32_t, std::vector<TokenId>, std::vector<float>>;

std::vector<LogprobTuple> ToTuples(const std::vector<TokenLogprobs>& entries) {
  std::vector<LogprobTuple> tuples;
  tuples.reserve(entries.size());
  for (const TokenLogprobs& entry : entries) {
    tuples.emplace_back(entry.logprob, entry.rank, entry.top_ids, entry.top_logprobs);
  }
  return tuples;
}

// Straight to the C API: this runs once a token for every streaming client.
nb::list Rows(const OutputArrays& self) {
  nb::list rows = nb::steal<nb::list>(PyList_New(static_cast<Py_ssize_t>(self.size())));
  for (size_t i = 0; i < self.size(); ++i) {
    const int32_t begin = self.token_offsets[i];
    const int32_t end = self.token_offsets[i + 1];
    PyObject* tokens = PyList_New(end - begin);
    for (int32_t t = begin; t < end; ++t) {
      PyList_SET_ITEM(tokens, t - begin, PyLong_FromLong(self.token_ids[static_cast<size_t>(t)]));
    }
    PyObject* row = PyTuple_New(5);
    PyTuple_SET_ITEM(row, 0, PyLong_FromUnsignedLongLong(self.request_ids[i]));
    PyTuple_SET_ITEM(row, 1, tokens);
    PyTuple_SET_ITEM(row, 2, PyLong_FromLong(self.finish_reasons[i]));
    PyTuple_SET_ITEM(row, 3, PyLong_FromLong(self.stop_tokens[i]));
    PyTuple_SET_ITEM(row, 4, PyLong_FromLong(self.cached_tokens[i]));
    PyList_SET_ITEM(rows.ptr(), static_cast<Py_ssize_t>(i), row);
  }
  return rows;
}

using RowList =
    nb::typed<nb::list, nb::typed<nb::tuple, int, nb::typed<nb::list, int>, int, int, int>>;

}  // namespace

void BindOutput(nb::module_& m) {
  using A = OutputArrays;
  nb::class_<A>(m, "OutputBatch",
                "What a poll took: one row per sequence that got something.\n"
                "token_ids[token_offsets[i]:token_offsets[i+1]] are row i's new tokens. Arrays\n"
                "are read-only views. finish_reasons: 0 none, 1 stop, 2 length, 3 abort, 4 error.")
      .def("__len__", &A::size)
      .def_prop_ro("request_ids", &ViewOf<&A::request_ids>)
      .def_prop_ro("token_offsets", &ViewOf<&A::token_offsets>)
      .def_prop_ro("token_ids", &ViewOf<&A::token_ids>)
      .def_prop_ro("finish_reasons", &ViewOf<&A::finish_reasons>)
      .def_prop_ro("stop_tokens", &ViewOf<&A::stop_tokens>, "The id that ended a row, -1 = none.")
      .def_prop_ro("cached_tokens", &ViewOf<&A::cached_tokens>,
                   "Prompt tokens not computed here: cached, or pulled from another engine.")
      .def(
          "rows", [](const A& self) -> RowList { return RowList(Rows(self)); },
          "(request_id, token_ids, finish_reason, stop_token, cached_tokens) of every row, in\n"
          "one call: what a front end that visits each row should use.")
      .def(
          "logprobs",
          [](const A& self, int64_t row) { return ToTuples(RowAt(self, row).logprobs); }, "i"_a,
          "(logprob, rank, top_ids, top_logprobs) of each of the row's tokens.")
      .def(
          "prompt_logprobs",
          [](const A& self, int64_t row) { return ToTuples(RowAt(self, row).prompt_logprobs); },
          "i"_a, "As `logprobs`, of the prompt positions finished since the last output.")
      .def(
          "kv_lease",
          [](const A& self, int64_t row) -> std::optional<LeaseTuple> {
            const std::optional<KvLease>& held = RowAt(self, row).kv_lease;
            if (!held) return std::nullopt;
            return LeaseTuple{held->lease.id, held->lease.epoch, held->num_tokens};
          },
          "i"_a,
          "(lease id, epoch, num_tokens) of the KV kept for the row's request (hold_kv), else "
          "None.")
      .def(
          "error", [](const A& self, int64_t row) { return RowAt(self, row).error; }, "i"_a,
          "Why the row failed (finish reason 4), else ''.");
}

}  // namespace dlcore

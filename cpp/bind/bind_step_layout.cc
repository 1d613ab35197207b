#include <array>
#include <functional>
#include <string_view>

#include <nanobind/operators.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind/bind.h"
#include "dlcore/options.h"
#include "dlcore/step_layout.h"
#include "graph/graph_table.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dlcore {
namespace {

constexpr std::array kKinds{"decode", "mixed"};              // StepKind
constexpr std::array kSamplers{"greedy", "random", "full"};  // SamplerVariant

template <class Enum, size_t N>
Enum Parse(const char* field, const std::string& name, const std::array<const char*, N>& names) {
  std::string accepted;
  for (size_t i = 0; i < N; ++i) {
    if (name == names[i]) return static_cast<Enum>(i);
    accepted += (i == 0 ? "'" : ", '") + std::string(names[i]) + "'";
  }
  throw nb::value_error(
      (std::string(field) + " must be one of " + accepted + ", got '" + name + "'").c_str());
}

const char* Name(FieldType type) {
  switch (type) {
    case FieldType::kInt32:
      return "int32";
    case FieldType::kInt64:
      return "int64";
    case FieldType::kFloat32:
      return "float32";
  }
  return "?";
}

// name, type, byte offset, shape
nb::list ToList(const std::vector<StepField>& fields) {
  nb::list list;
  for (const StepField& field : fields) {
    nb::object shape = field.cols == 0 ? nb::object(nb::make_tuple(field.rows))
                                       : nb::object(nb::make_tuple(field.rows, field.cols));
    list.append(nb::make_tuple(nb::str(field.name.data(), field.name.size()), Name(field.type),
                               field.offset, shape));
  }
  return list;
}

size_t Hash(const StepKey& key) {
  size_t hash = static_cast<size_t>(key.kind) * 3 + static_cast<size_t>(key.sampler);
  for (const int32_t count : {key.num_tokens, key.num_seqs, key.spec_len}) {
    hash = hash * 1000003 + static_cast<size_t>(count);
  }
  return hash;
}

void BindStepKey(nb::module_& m) {
  nb::class_<StepKey>(m, "StepKey", "Names one captured graph; counts are bucket sizes.")
      .def(
          "__init__",
          [](StepKey* self, const std::string& kind, const std::string& sampler, int32_t num_tokens,
             int32_t num_seqs, int32_t spec_len) {
            new (self) StepKey{Parse<StepKind>("kind", kind, kKinds),
                               Parse<SamplerVariant>("sampler", sampler, kSamplers), num_tokens,
                               num_seqs, spec_len};
          },
          "kind"_a, "sampler"_a, "num_tokens"_a, "num_seqs"_a, "spec_len"_a = 0)
      .def_prop_ro("kind", [](const StepKey& k) { return kKinds[static_cast<size_t>(k.kind)]; })
      .def_prop_ro("sampler",
                   [](const StepKey& k) { return kSamplers[static_cast<size_t>(k.sampler)]; })
      .def_ro("num_tokens", &StepKey::num_tokens)
      .def_ro("num_seqs", &StepKey::num_seqs)
      .def_ro("spec_len", &StepKey::spec_len)
      .def(nb::self == nb::self, nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__hash__", &Hash)
      .def("__repr__", [](const StepKey& k) { return "StepKey(" + ToString(k) + ")"; });
}

using Fields =
    nb::typed<nb::list,
              nb::typed<nb::tuple, nb::str, nb::str, int, nb::typed<nb::tuple, int, nb::ellipsis>>>;

}  // namespace

void BindStepLayout(nb::module_& m) {
  BindStepKey(m);
  nb::class_<StepLayout>(m, "StepLayout",
                         "Where each field of a step lies (cpp/include/dlcore/step_layout.h).")
      .def(
          "__init__",
          [](StepLayout* self, const EngineOptions& options, const StepKey& key) {
            new (self) StepLayout(options.limits, key);
          },
          "options"_a, "key"_a)
      .def(
          "inputs", [](const StepLayout& l) -> Fields { return Fields(ToList(l.inputs())); },
          "Fields of the input arena: name, 'int32' | 'int64' | 'float32', byte offset, shape.")
      .def(
          "outputs", [](const StepLayout& l) -> Fields { return Fields(ToList(l.outputs())); },
          "Fields of the output arena, as `inputs`.")
      .def_prop_ro("tail_offset", &StepLayout::tail_offset)
      .def_prop_ro("output_bytes", &StepLayout::output_bytes)
      .def_static(
          "max_input_bytes",
          [](const EngineOptions& options) { return StepLayout::MaxInputBytes(options.limits); },
          "options"_a)
      .def_static(
          "max_output_bytes",
          [](const EngineOptions& options) { return StepLayout::MaxOutputBytes(options.limits); },
          "options"_a);
}

}  // namespace dlcore

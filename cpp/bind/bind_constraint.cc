#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include "bind/bind.h"
#include "bind/py_constraint.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dlcore {
namespace {

using MaskArray = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using UpdateList = nb::typed<nb::list, nb::typed<nb::tuple, int, int, nb::typed<nb::list, int>>>;

UpdateList Poll(const PyConstraintQueue& self, double timeout_s) {
  std::vector<ConstraintQueue::Update> updates;
  {
    const nb::gil_scoped_release released;
    updates = self.queue->Poll(timeout_s);
  }
  nb::list list;
  for (const ConstraintQueue::Update& update : updates) {
    nb::list tokens;
    for (const TokenId token : update.tokens) tokens.append(token);
    list.append(nb::make_tuple(update.key, update.num_tokens_seen, tokens));
  }
  return UpdateList(list);
}

bool SetMask(const PyConstraint& self, int64_t num_tokens_seen, const MaskArray& mask,
             bool finished) {
  const auto words = static_cast<size_t>(self.constraint->mask_words());
  if (mask.shape(0) != words) {
    throw nb::value_error(("mask must have " + std::to_string(words) +
                           " uint32 words (one bit a token), got " + std::to_string(mask.shape(0)))
                              .c_str());
  }
  const nb::gil_scoped_release released;
  return self.constraint->SetMask(num_tokens_seen, {mask.data(), words}, finished);
}

}  // namespace

void BindConstraint(nb::module_& m) {
  nb::class_<PyConstraintQueue>(
      m, "ConstraintQueue",
      "Generated tokens of constrained requests, for the thread that computes masks.")
      .def(nb::init<>())
      .def(
          "fd", [](const PyConstraintQueue& self) { return self.queue->fd(); },
          "A descriptor that is readable while updates wait.")
      .def("poll", &Poll, "timeout_s"_a,
           "(key, num_tokens_seen, new_tokens) of each constraint that advanced; empty on\n"
           "timeout. Releases the GIL while waiting. Answer with set_mask(num_tokens_seen, ...).");
  nb::class_<PyConstraint>(
      m, "TokenConstraint",
      "Says which tokens may come next in one request. Its masks are set from Python; until\n"
      "the next mask is set the request is not scheduled, and no other request waits for it.\n"
      "`key` names it in `queue`'s updates. Set the first mask with num_tokens_seen=0.")
      .def(
          "__init__",
          [](PyConstraint* self, const PyConstraintQueue& queue, uint64_t key, int32_t vocab_size) {
            if (vocab_size < 1) throw nb::value_error("vocab_size must be positive");
            new (self)
                PyConstraint{std::make_shared<PolledConstraint>(queue.queue, key, vocab_size)};
          },
          "queue"_a, "key"_a, "vocab_size"_a)
      .def("set_mask", &SetMask, "num_tokens_seen"_a, "mask"_a.noconvert(), "finished"_a = false,
           "Bit i of word i // 32 = token i may follow the first `num_tokens_seen` generated\n"
           "tokens. mask: [ceil(vocab_size / 32)] uint32. finished: nothing but a stop token may\n"
           "follow. False when this is not the mask the request waits for. Any thread.")
      .def_prop_ro(
          "num_tokens_seen",
          [](const PyConstraint& self) { return self.constraint->num_tokens_seen(); },
          "Generated tokens so far: what the next mask must follow.")
      .def_prop_ro("ready", [](const PyConstraint& self) { return self.constraint->Ready(); });
}

}  // namespace dlcore

#include <limits>

#include <nanobind/ndarray.h>

#include "bind/bind.h"

namespace nb = nanobind;

namespace dlcore {
namespace {

template <class T>
using Array = nb::ndarray<const T, nb::ndim<1>, nb::device::cpu>;

[[noreturn]] void ThrowBadToken(const char* field, size_t index, const char* what) {
  throw nb::value_error((std::string(field) + "[" + std::to_string(index) + "] " + what).c_str());
}

TokenId Narrow(long long value, const char* field, size_t index) {
  using Limits = std::numeric_limits<TokenId>;
  if (value < Limits::min() || value > Limits::max()) {
    ThrowBadToken(field, index, "is out of range for a token id");
  }
  return static_cast<TokenId>(value);
}

template <class T>
std::vector<TokenId> FromArray(const Array<T>& array, const char* field) {
  std::vector<TokenId> tokens(array.shape(0));
  const T* data = array.data();
  const int64_t stride = array.stride(0);
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = Narrow(data[static_cast<int64_t>(i) * stride], field, i);
  }
  return tokens;
}

std::vector<TokenId> FromSequence(nb::handle source, const char* field) {
  const nb::object fast =
      nb::steal(PySequence_Fast(source.ptr(), "expected a sequence of token ids"));
  if (!fast.is_valid()) {
    PyErr_Clear();
    throw nb::value_error((std::string(field) + " must be a sequence of ints").c_str());
  }
  std::vector<TokenId> tokens(static_cast<size_t>(PySequence_Fast_GET_SIZE(fast.ptr())));
  for (size_t i = 0; i < tokens.size(); ++i) {
    PyObject* item = PySequence_Fast_GET_ITEM(fast.ptr(), static_cast<Py_ssize_t>(i));
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(item, &overflow);
    if (overflow != 0) ThrowBadToken(field, i, "is out of range for a token id");
    if (value == -1 && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      ThrowBadToken(field, i, "is not an int");
    }
    tokens[i] = Narrow(value, field, i);
  }
  return tokens;
}

}  // namespace

void ThrowIfError(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return;
    case StatusCode::kInvalidArgument:
      throw nb::value_error(status.message().c_str());
    case StatusCode::kUnavailable:
      throw UnavailableError(status.message());
    case StatusCode::kResourceExhausted:
      throw QueueFullError(status.message());
    case StatusCode::kNotFound:
    case StatusCode::kDeadlineExceeded:
    case StatusCode::kPermissionDenied:
    case StatusCode::kInternal:
      throw std::runtime_error(status.message());
  }
}

std::vector<TokenId> ToTokenIds(nb::handle source, const char* field) {
  if (!PyList_Check(source.ptr()) && !PyTuple_Check(source.ptr())) {
    Array<int32_t> int32s;
    if (nb::try_cast(source, int32s, false)) return FromArray(int32s, field);
    Array<int64_t> int64s;
    if (nb::try_cast(source, int64s, false)) return FromArray(int64s, field);
  }
  return FromSequence(source, field);
}

}  // namespace dlcore

#pragma once

#include "base/text.h"

namespace dlcore {

// Collects the message of a failed check; its destructor prints it with the
// place and aborts. Only DLCORE_CHECK makes one.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition);
  [[noreturn]] ~CheckFailure();

  CheckFailure(const CheckFailure&) = delete;
  CheckFailure& operator=(const CheckFailure&) = delete;

  Text& stream() { return message_; }

 private:
  Text message_;
};

// Gives both branches of the check the type void; & binds weaker than <<.
struct CheckVoid {
  void operator&(const Text&) const {}
};

}  // namespace dlcore

// States what only a bug of ours can break; never reachable from user input.
// On in every build. DLCORE_CHECK(free >= 0) << "free is " << free;
#define DLCORE_CHECK(condition)                     \
  __builtin_expect(static_cast<bool>(condition), 1) \
      ? (void)0                                     \
      : ::dlcore::CheckVoid() & ::dlcore::CheckFailure(__FILE__, __LINE__, #condition).stream()

#include "base/check.h"

#include <gtest/gtest.h>

namespace dlcore {
namespace {

TEST(Check, PassesSilentlyAndEvaluatesOnce) {
  int calls = 0;
  DLCORE_CHECK(++calls == 1) << "never printed";
  EXPECT_EQ(calls, 1);
}

TEST(CheckDeathTest, AbortsWithPlaceConditionAndReason) {
  EXPECT_DEATH(DLCORE_CHECK(1 > 2) << "free is " << -3, "check_test.cc.*1 > 2.*free is -3");
}

}  // namespace
}  // namespace dlcore

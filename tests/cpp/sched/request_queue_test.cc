#include "sched/request_queue.h"

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace dlcore {
namespace {

std::unique_ptr<Sequence> Make(uint64_t arrival, int32_t priority) {
  Request request;
  request.id = RequestId(arrival);
  request.prompt = {1};
  request.priority = priority;
  return std::make_unique<Sequence>(std::move(request), arrival, EngineOptions());
}

TEST(RequestQueue, PriorityThenArrival) {
  const auto a = Make(0, 1);
  const auto b = Make(1, 0);
  const auto c = Make(2, 0);
  RequestQueue queue;
  for (Sequence* s : {c.get(), a.get(), b.get()}) queue.Push(s);
  EXPECT_EQ(std::vector<Sequence*>(queue.begin(), queue.end()),
            (std::vector<Sequence*>{b.get(), c.get(), a.get()}));
}

TEST(RequestQueue, RandomPushAndRemoveKeepTheOrder) {
  std::mt19937 random(5);
  std::vector<std::unique_ptr<Sequence>> all;
  for (uint64_t i = 0; i < 64; ++i) all.push_back(Make(i, static_cast<int32_t>(random() % 4)));
  std::vector<Sequence*> model;
  RequestQueue queue;
  for (int op = 0; op < 20'000; ++op) {
    Sequence* s = all[random() % all.size()].get();
    const auto found = std::ranges::find(model, s);
    if (found == model.end()) {
      queue.Push(s);
      model.push_back(s);
    } else {
      queue.Remove(s);
      model.erase(found);
    }
    std::ranges::sort(model, RunsBefore());
    ASSERT_TRUE(std::ranges::equal(queue, model));
  }
}

}  // namespace
}  // namespace dlcore

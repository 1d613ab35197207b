// Steps of decoding sequences allocate nothing, block boundaries included.
#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#include <gtest/gtest.h>

#include "sched/scheduler.h"
#include "step/step_builder.h"

namespace {
std::atomic<int64_t> allocations{0};
}  // namespace

// Not inlined: seeing malloc behind new, the compiler takes the pair for a mismatch.
[[gnu::noinline]] void* operator new(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace dlcore {
namespace {

TEST(SteadyState, StepsAllocateNothing) {
  EngineOptions options;
  options.limits.max_num_seqs = 16;
  options.limits.vocab_size = 1000;
  options.num_kv_blocks = 16 * 80;
  Scheduler scheduler(options);
  StepBuilder builder(options.limits);
  std::vector<std::byte> mirror(StepLayout::MaxInputBytes(options.limits));
  std::vector<int32_t> tokens(16);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 31 % 1000);
  for (uint64_t id = 0; id < 16; ++id) {
    Request request;
    request.id = RequestId(id);
    request.prompt.assign(20 + id, static_cast<TokenId>(id));
    request.sampling.max_tokens = 1200;
    ASSERT_TRUE(scheduler.Submit(std::move(request)).ok());
  }
  OutputBatch batch;
  StepResult result;
  result.sampled_tokens = tokens;
  const auto step = [&] {
    const StepPlan& plan = scheduler.NextPlan();
    builder.Fill(plan, plan.key(), mirror);
    scheduler.Commit(result);
    batch.outputs.clear();
    scheduler.TakeOutputs(&batch);
  };
  scheduler.NextPlan();
  for (int i = 0; i < 50; ++i) step();
  const int64_t before = allocations.load();
  for (int i = 0; i < 1000; ++i) step();
  EXPECT_EQ(allocations.load() - before, 0);
  EXPECT_EQ(batch.outputs.size(), 16u);
}

}  // namespace
}  // namespace dlcore

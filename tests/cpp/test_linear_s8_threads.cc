// However the work is split, the result has the same bits.
#include <pthread.h>

#include <atomic>

#include "core/registry.h"
#include "linear_run.h"

namespace {

using tersor::Executor;
using tersor::PoolExecutor;
using tersor::testing::CheckLinear;
using tersor::testing::LinearCase;
using tersor::testing::Pack;
using tersor::testing::Quick;
using tersor::testing::UnderEachIsa;

// The pool, asked for a number of tasks that need not be its number of threads.
Executor PoolWith(int32_t tasks) { return {tasks, PoolExecutor().run}; }

void CheckSplits(const LinearCase& c) {
  const std::vector<char> packed = Pack(c);
  const std::vector<float> expected = c.Expected();
  for (int32_t tasks : {1, 2, 3, 8}) CheckLinear(c, packed, PoolWith(tasks), expected);
}

struct Shared {
  const LinearCase& c;
  const std::vector<char>& packed;
  const std::vector<float>& expected;
  std::atomic<int> wrong{0};
};

void* CallOften(void* context) {
  Shared& shared = *static_cast<Shared*>(context);
  const LinearCase& c = shared.c;
  std::vector<float> y(static_cast<size_t>(c.m * c.n));
  for (int i = 0; i < (Quick() ? 5 : 30); ++i) {
    tersor::LinearS8Args args{};
    args.m = c.m;
    args.x = c.x.data();
    args.ldx = c.k;
    args.packed = shared.packed.data();
    args.packed_bytes = shared.packed.size();
    args.bias = c.bias.data();
    args.y = y.data();
    args.ldy = c.n;
    tersor::LinearS8(args, PoolWith(3));
    shared.wrong += y != shared.expected;
  }
  return nullptr;
}

}  // namespace

// Enough multiply-adds for the front end to split: by columns, by rows, and with more tasks than panels.
TEST(SplitByColumns) {
  UnderEachIsa([] {
    LinearCase c(1, Quick() ? 2700 : 5000, 1000, 1);
    c.activation = tersor::Activation::kSilu;
    CheckSplits(c);
    LinearCase few(5, 530, 1001, 2);
    few.Narrow(tersor::DType::kF16);
    CheckSplits(few);
  });
}

TEST(SplitByRows) {
  UnderEachIsa([] {
    LinearCase c(300, 40, 250, 3);
    c.with_residual = true;
    CheckSplits(c);
  });
}

TEST(MoreTasksThanPanels) {
  UnderEachIsa([] { CheckSplits(LinearCase(3, 33, 27000, 4)); });
}

TEST(CallersInManyThreads) {
  const LinearCase c(30, 200, 500, 5);
  const std::vector<char> packed = Pack(c);
  const std::vector<float> expected = c.Expected();
  Shared shared{c, packed, expected};
  pthread_t callers[4];
  for (pthread_t& caller : callers) CHECK(pthread_create(&caller, nullptr, CallOften, &shared) == 0);
  for (const pthread_t& caller : callers) pthread_join(caller, nullptr);
  CHECK_OR(shared.wrong == 0, "%d calls went wrong", shared.wrong.load());
}

TEST(IntegersThroughThePool) {
  UnderEachIsa([] {
    const LinearCase c(9, 150, 70, 6);
    const std::vector<char> packed = Pack(c);
    const std::vector<uint8_t> a(9 * 70, 201);
    std::vector<int32_t> got(9 * 150), want(9 * 150);
    tersor::reference::GemmS8(9, 150, 70, a.data(), 70, c.w.data(), want.data(), 150);
    tersor::GemmS8(9, a.data(), 70, packed.data(), packed.size(), got.data(), 150, PoolExecutor());
    CHECK(got == want);
  });
}

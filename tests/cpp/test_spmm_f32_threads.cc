// However the work is split, the result has the same bits.
#include "core/registry.h"
#include "sparse_f32_cases.h"

namespace {

using tersor::Executor;
using tersor::PoolExecutor;
using tersor::testing::CheckSparseF32;
using tersor::testing::Pattern;
using tersor::testing::SparseF32Case;
using tersor::testing::UnderEachIsa;

void CheckSplits(const SparseF32Case& c) {
  const std::vector<char> packed = c.Pack();
  const std::vector<float> expected = c.Expected();
  for (int32_t tasks : {1, 2, 3, 8}) {
    const Executor executor = {tasks, PoolExecutor().run};  // tasks need not be the number of threads
    CheckSparseF32(c, packed, executor, expected);
  }
}

}  // namespace

TEST(SplitByWeightRows) {
  UnderEachIsa([] {
    for (Pattern pattern : {Pattern::kFull, Pattern::kUneven, Pattern::kOneFullRow}) {
      SparseF32Case c(20, 330, 700, pattern, 1);
      c.activation = tersor::Activation::kSilu;
      c.with_residual = true;
      CheckSplits(c);
    }
    CheckSplits(SparseF32Case(1, 1100, 700, Pattern::kFull, 2));
  });
}

TEST(SplitByTokens) {
  UnderEachIsa([] {
    SparseF32Case c(300, 70, 250, Pattern::kUnstructured, 2);
    c.Narrow(tersor::DType::kF16);
    CheckSplits(c);
  });
}

TEST(MoreTasksThanBands) {
  UnderEachIsa([] { CheckSplits(SparseF32Case(25, 70, 1000, Pattern::kFull, 3)); });
}

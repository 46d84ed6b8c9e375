// However the work is split, the result has the same bits.
#include "core/registry.h"
#include "sparse_cases.h"

namespace {

using tersor::Executor;
using tersor::PoolExecutor;
using tersor::testing::CheckLinear;
using tersor::testing::kSparse;
using tersor::testing::LinearCase;
using tersor::testing::PackSparse;
using tersor::testing::Pattern;
using tersor::testing::UnderEachIsa;

void CheckSplits(const LinearCase& c) {
  const std::vector<char> packed = PackSparse(c);
  const std::vector<float> expected = c.Expected();
  for (int32_t tasks : {1, 2, 3, 8}) {
    const Executor executor = {tasks, PoolExecutor().run};  // tasks need not be the number of threads
    CheckLinear(c, packed, executor, expected, false, kSparse);
  }
}

}  // namespace

TEST(SplitByWeightRows) {
  UnderEachIsa([] {
    for (Pattern pattern : {Pattern::kFull, Pattern::kUneven, Pattern::kOneFullRow}) {
      LinearCase c(30, 330, 700, 1);
      Thin(pattern, 1, c);
      c.activation = tersor::Activation::kSilu;
      c.with_residual = true;
      CheckSplits(c);
    }
  });
}

TEST(SplitByTokens) {
  UnderEachIsa([] {
    LinearCase c(600, 40, 250, 2);
    Thin(Pattern::kUnstructured, 2, c);
    c.Narrow(tersor::DType::kF16);
    CheckSplits(c);
  });
}

TEST(MoreTasksThanBands) {
  UnderEachIsa([] {
    LinearCase c(60, 70, 1000, 3);
    Thin(Pattern::kFull, 3, c);
    CheckSplits(c);
  });
}

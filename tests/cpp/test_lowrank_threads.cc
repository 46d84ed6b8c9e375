// However the work is split, by rows or by columns, the results have the same bits.
#include "lowrank_cases.h"

namespace {

using tersor::Activation;
using tersor::DType;
using tersor::testing::CheckLinear;
using tersor::testing::LowRankCase;
using tersor::testing::UnderEachIsa;

}  // namespace

TEST(SplitsGiveTheSameBits) {
  UnderEachIsa([] {
    for (int64_t m : {1, 20, 300}) {
      LowRankCase c(m, 330, 400, 130, 1);
      c.activation = Activation::kSilu;
      c.with_residual = true;
      if (m == 300) c = LowRankCase(m, 130, 128, 70, 2);
      for (bool dense : {false, true}) {
        c.with_dense = dense;
        if (m == 20) c.Narrow(DType::kF16);
        const std::vector<char> f32 = c.PackF32(), s8 = c.PackS8();
        const std::vector<float> expected_f32 = c.ExpectedF32(), expected_s8 = c.ExpectedS8();
        for (int32_t tasks : {2, 3, 8}) {
          const tersor::Executor executor = {tasks, tersor::PoolExecutor().run};  // tasks need not be threads
          if (!dense) CheckLinear(c, f32, executor, expected_f32, false, tersor::testing::kLowRankF32);
          CheckLinear(c, s8, executor, expected_s8, false, tersor::testing::kLowRankS8);
        }
      }
    }
  });
}

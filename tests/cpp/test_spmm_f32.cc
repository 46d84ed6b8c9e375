// The sparse float op equals its definition, one chain of fused multiply-adds per output, bit for bit on every set.
#include "core/registry.h"
#include "sparse_f32_cases.h"

namespace {

using tersor::Activation;
using tersor::DType;
using tersor::SerialExecutor;
using tersor::testing::CheckSparseF32;
using tersor::testing::ErrorOf;
using tersor::testing::Holds;
using tersor::testing::kPatterns;
using tersor::testing::Pattern;
using tersor::testing::Quick;
using tersor::testing::SparseF32Case;
using tersor::testing::UnderEachIsa;

constexpr DType kDTypes[] = {DType::kF32, DType::kBf16, DType::kF16};

}  // namespace

TEST(EveryPattern) {
  UnderEachIsa([] {
    uint64_t seed = 0;
    for (Pattern pattern : kPatterns)
      for (int64_t m : {1, 2, 17, 32, 33})
        for (int64_t n : {1, 5, 64, 67})
          for (int64_t k : {1, 6, 257})
            if (!Quick() || m % 2 == 1) CheckSparseF32(SparseF32Case(m, n, k, pattern, ++seed));
  });
}

TEST(AwkwardShapesOnEveryIsa) {
  UnderEachIsa([] {
    uint64_t seed = 1;
    for (int64_t m : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65})
      for (int64_t n : {1, 3, 7, 8, 15, 16, 17, 63, 64, 65, 130})
        for (int64_t k : {1, 3, 4, 15, 16, 17, 255, 256, 257, 600}) {
          ++seed;
          if (Quick() ? seed % 11 != 0 : seed % 3 != 0 && k > 65) continue;
          SparseF32Case c(m, n, k, kPatterns[seed % 9], seed);
          c.with_bias = seed % 5 != 0;
          c.with_residual = seed % 2 != 0;
          c.Narrow(kDTypes[seed % 4 == 3 ? 1 + seed / 4 % 2 : 0]);
          CheckSparseF32(c, seed % 7 == 0);
        }
  });
}

TEST(EveryDTypeActivationAndOption) {
  UnderEachIsa([] {
    for (DType dtype : kDTypes)
      for (int32_t activation = 0; activation < tersor::kActivationCount; ++activation)
        for (int options = 0; options < 8; ++options) {
          SparseF32Case c(options % 3 == 0 ? 1 : 40, 70, 39, Pattern::kUnstructured, static_cast<uint64_t>(options));
          c.Narrow(dtype);
          c.activation = static_cast<Activation>(activation);
          c.with_bias = options & 1;
          c.with_residual = options & 2;
          CheckSparseF32(c, options & 4);
        }
  });
}

// An infinity or a NaN reaches exactly the outputs whose weight there is not zero; a sum of nothing but -0 stays -0.
TEST(SpecialValues) {
  UnderEachIsa([] {
    for (int64_t m : {1, 5, 40}) {
      SparseF32Case c(m, 20, 300, Pattern::kUneven, 12);
      c.x[0] = INFINITY;
      c.x[static_cast<size_t>((m - 1) * 300 + 7)] = NAN;
      c.x[static_cast<size_t>((m - 1) * 300 + 9)] = 1e-42f;
      c.bias.assign(c.bias.size(), -0.0f);
      c.w[300 + 5] = NAN;
      c.w[2 * 300 + 5] = 1e-44f;
      const std::vector<float> expected = c.Expected();
      CHECK(std::signbit(expected[0]) && expected[0] == 0.0f);  // row 0 of w is empty
      CheckSparseF32(c);
    }
  });
}

// More bands than pass by at once, and many blocks of k.
TEST(LargeExtents) {
  UnderEachIsa([] {
    SparseF32Case wide(Quick() ? 2 : 20, 4200, 20, Pattern::kUnstructured, 16);
    wide.with_residual = true;
    CheckSparseF32(wide);
    CheckSparseF32(SparseF32Case(1, 4200, 20, Pattern::kUnstructured, 17));
    CheckSparseF32(SparseF32Case(2, 3, 70000, Pattern::kUnstructured, 18));
    CheckSparseF32(SparseF32Case(1, 3, 70000, Pattern::kUnstructured, 18));
    CheckSparseF32(SparseF32Case(0, 3, 5, Pattern::kFull, 18));
  });
}

TEST(WeightPackedForAWorseIsaStillRuns) {
  const SparseF32Case c(9, 40, 50, Pattern::kUnstructured, 17);
  const std::vector<float> expected = c.Expected();
  UnderEachIsa([&] {
    const std::vector<char> packed = c.Pack();
    UnderEachIsa([&] { CheckSparseF32(c, packed, SerialExecutor(), expected); });
  });
}

TEST(ArgumentsAreChecked) {
  const SparseF32Case c(2, 5, 6, Pattern::kFull, 20);
  const std::vector<char> packed = c.Pack();
  std::vector<float> y(10);
  tersor::SpmmF32Args good{};
  good.m = 2;
  good.x = c.x.data();
  good.ldx = 6;
  good.packed = packed.data();
  good.packed_bytes = packed.size();
  good.y = y.data();
  good.ldy = 5;
  const auto error_with = [&](auto change) {
    tersor::SpmmF32Args args = good;
    change(args);
    return ErrorOf([&] { tersor::SpmmF32(args, SerialExecutor()); });
  };
  CHECK(error_with([](auto&) {}).empty());
  CHECK(Holds(error_with([](auto& a) { a.m = -1; }), "spmm_f32: m=-1"));
  CHECK(Holds(error_with([](auto& a) { a.x = nullptr; }), "null"));
  CHECK(Holds(error_with([](auto& a) { a.ldy = 4; }), "stride"));
  CHECK(Holds(error_with([](auto& a) { a.dtype = static_cast<DType>(3); }), "3"));
  CHECK(Holds(error_with([](auto& a) { a.activation = static_cast<Activation>(5); }), "5"));
  CHECK(Holds(error_with([](auto& a) { --a.packed_bytes; }), "packed sparse float weight"));
}

// The low-rank ops equal their definitions bit for bit on every set.
#include <algorithm>

#include "lowrank_cases.h"

namespace {

using tersor::Activation;
using tersor::DType;
using tersor::SerialExecutor;
using tersor::testing::CheckLinear;
using tersor::testing::CheckLowRankF32;
using tersor::testing::CheckLowRankS8;
using tersor::testing::ErrorOf;
using tersor::testing::Holds;
using tersor::testing::LowRankCase;
using tersor::testing::Quick;
using tersor::testing::UnderEachIsa;

constexpr DType kDTypes[] = {DType::kF32, DType::kBf16, DType::kF16};

}  // namespace

TEST(AwkwardShapesOnEveryIsa) {
  UnderEachIsa([] {
    uint64_t seed = 0;
    for (int64_t m : {1, 2, 3, 5, 8, 9, 14, 15, 29, 60})
      for (int64_t n : {1, 7, 16, 33, 64, 70})
        for (int64_t k : {1, 5, 64, 130})
          for (int64_t rank : {1, 4, 31, 32, 33, 65}) {
            ++seed;
            if (rank > std::min(n, k) || seed % (Quick() ? 11 : 3) != 0) continue;
            LowRankCase c(m, n, k, rank, seed);
            c.with_bias = seed % 5 != 0;
            c.with_residual = seed % 2 != 0;
            c.Narrow(kDTypes[seed % 4 == 3 ? 1 + seed / 4 % 2 : 0]);
            CheckLowRankF32(c, seed % 7 == 0);
            c.with_dense = seed % 8 < 3;
            if (seed % 3 == 0) c.Smooth(seed);
            CheckLowRankS8(c, seed % 7 == 0);
          }
  });
}

TEST(EveryDTypeActivationAndOption) {
  UnderEachIsa([] {
    for (DType dtype : kDTypes)
      for (int32_t activation = 0; activation < tersor::kActivationCount; ++activation)
        for (int options = 0; options < 8; ++options) {
          LowRankCase c(options % 3 == 0 ? 1 : 20, 70, 39, 20, static_cast<uint64_t>(options));
          c.Narrow(dtype);
          c.activation = static_cast<Activation>(activation);
          c.with_bias = options & 1;
          c.with_residual = options & 2;
          c.with_dense = options % 3 == 1;
          CheckLowRankF32(c, options & 4);
          CheckLowRankS8(c, options & 4);
        }
  });
}

// More than a block of k, more than a strip of rows, static ranges.
TEST(DeepWideAndTall) {
  UnderEachIsa([] {
    const int64_t scale = Quick() ? 4 : 1;
    CheckLowRankF32(LowRankCase(21, 70, 1100, 40, 1));
    CheckLowRankF32(LowRankCase(5, 70, 1100, 40, 2));
    CheckLowRankF32(LowRankCase(600 / scale, 40, 600 / scale, 33, 3));
    LowRankCase tall(900 / scale, 40, 500 / scale, 33, 4);
    tall.with_dense = true;
    tall.Narrow(DType::kBf16);
    CheckLowRankS8(tall);
    LowRankCase fixed(30, 40, 50, 33, 5);
    fixed.x_scale = 0.02f;
    fixed.x_zero_point = 90;
    CheckLowRankS8(fixed);
    CheckLowRankF32(LowRankCase(0, 3, 5, 2, 6));
    CheckLowRankS8(LowRankCase(0, 3, 5, 2, 6));
  });
}

// A row with NaN or infinity is NaN in int8; in float it goes through the products. Other rows are not touched.
TEST(SpecialValues) {
  UnderEachIsa([] {
    for (int64_t m : {3, 40}) {
      LowRankCase c(m, 20, 30, 10, 12);
      c.x[0] = INFINITY;
      c.x[static_cast<size_t>((m - 1) * 30 + 7)] = NAN;
      for (int64_t p = 0; p < 30; ++p) c.x[static_cast<size_t>(30 + p)] = 0.0f;
      c.bias.assign(c.bias.size(), -0.0f);
      CheckLowRankF32(c);
      CheckLowRankS8(c);
      c.with_dense = true;
      CheckLowRankS8(c);
    }
  });
}

TEST(WeightPackedForAWorseIsaStillRuns) {
  const LowRankCase c(9, 40, 50, 20, 17);
  const std::vector<float> f32 = c.ExpectedF32(), s8 = c.ExpectedS8();
  UnderEachIsa([&] {
    const std::vector<char> packed_f32 = c.PackF32(), packed_s8 = c.PackS8();
    UnderEachIsa([&] {
      CheckLinear(c, packed_f32, SerialExecutor(), f32, false, tersor::testing::kLowRankF32);
      CheckLinear(c, packed_s8, SerialExecutor(), s8, false, tersor::testing::kLowRankS8);
    });
  });
}

TEST(ArgumentsAreChecked) {
  const LowRankCase c(2, 5, 6, 3, 20);
  const std::vector<char> f32 = c.PackF32(), s8 = c.PackS8();
  std::vector<float> y(10);
  tersor::LinearS8Args good{};
  good.m = 2;
  good.x = c.x.data();
  good.ldx = 6;
  good.y = y.data();
  good.ldy = 5;
  const auto error_with = [&](bool integers, auto change) {
    tersor::LinearS8Args args = good;
    args.packed = integers ? s8.data() : f32.data();
    args.packed_bytes = integers ? s8.size() : f32.size();
    change(args);
    return ErrorOf([&] {
      integers ? tersor::LowRankS8(args, SerialExecutor()) : tersor::testing::RunLowRankF32(args, SerialExecutor());
    });
  };
  for (bool integers : {false, true}) {
    CHECK(error_with(integers, [](auto&) {}).empty());
    CHECK(Holds(error_with(integers, [](auto& a) { a.m = -1; }), integers ? "lowrank_s8: m=-1" : "lowrank_f32: m=-1"));
    CHECK(Holds(error_with(integers, [](auto& a) { a.x = nullptr; }), "null"));
    CHECK(Holds(error_with(integers, [](auto& a) { a.ldy = 4; }), "stride"));
    CHECK(Holds(error_with(integers, [](auto& a) { a.dtype = static_cast<DType>(3); }), "3"));
    CHECK(Holds(error_with(integers, [](auto& a) { --a.packed_bytes; }), "packed low-rank"));
  }
  CHECK(Holds(error_with(true, [](auto& a) { a.x_scale = -1.0f; }), "x_scale"));
  CHECK(Holds(error_with(true, [&](auto& a) { a.packed = f32.data(), a.packed_bytes = f32.size(); }), "are not one"));
}

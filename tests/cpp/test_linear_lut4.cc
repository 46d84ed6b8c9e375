// linear_lut4 on every instruction set equals its definition bit for bit.
#include "core/registry.h"
#include "lut4_cases.h"

namespace {

using tersor::Activation;
using tersor::DType;
using tersor::Executor;
using tersor::testing::CheckLut4;
using tersor::testing::ErrorOf;
using tersor::testing::Fenced;
using tersor::testing::Holds;
using tersor::testing::Lut4Case;
using tersor::testing::Quick;
using tersor::testing::Random;
using tersor::testing::Tables;
using tersor::testing::UnderEachIsa;

constexpr DType kDTypes[] = {DType::kF32, DType::kBf16, DType::kF16};
constexpr Tables kTables[] = {Tables::kOne, Tables::kPerRow, Tables::kPerGroup};

// a ends at an unmapped page; so does the panel, in `packed`.
void CheckSums(const Lut4Case& c) {
  Random random(7);
  const int64_t lda = c.k + 3;
  const std::vector<uint8_t> a = tersor::testing::Activations(tersor::testing::Fill::kRandom, c.m * lda, random);
  const std::vector<char> packed = c.PackCodes();
  Fenced memory(packed.size());
  const char* placed = memory.Copy(packed);
  std::vector<int32_t> got(static_cast<size_t>(c.m * c.n)), dense(got);
  tersor::GemmLut4(c.m, a.data(), lda, placed, packed.size(), got.data(), c.n, tersor::SerialExecutor());
  tersor::reference::GemmS8(c.m, c.n, c.k, a.data(), lda, c.w.data(), dense.data(), c.n);
  CHECK_OR(got == dense, "%s m=%d n=%d k=%d bits=%d: sums differ", tersor::ActiveIsa().c_str(), static_cast<int>(c.m),
           static_cast<int>(c.n), static_cast<int>(c.k), c.spec.bits);
}

}  // namespace

TEST(Integers) {
  UnderEachIsa([] {
    uint64_t seed = 1;
    for (int32_t bits = 2; bits <= 8; ++bits)
      for (int64_t n : {1, 15, 16, 17, 33, 70})
        for (int64_t k : {1, 31, 32, 33, 127, 300}) {
          ++seed;
          if (Quick() && seed % 5 != 0) continue;
          CheckSums(Lut4Case(5, n, k, bits, seed % 2 == 0 ? 32 : 0, kTables[seed % 3], seed));
        }
  });
}

TEST(AwkwardShapes) {
  UnderEachIsa([] {
    uint64_t seed = 1;
    for (int64_t m : {1, 2, 3, 4, 5, 15, 31})
      for (int64_t n : {1, 3, 16, 17, 31, 33, 65})
        for (int64_t k : {1, 5, 16, 31, 32, 33, 63, 64, 65, 96, 129, 300})
          for (int64_t group : {0, 32, 64, 128}) {
            ++seed;
            if (seed % (Quick() ? 23 : 3) != 0) continue;
            Lut4Case c(m, n, k, 2 + static_cast<int32_t>(seed / 3 % 7), group, kTables[seed / 7 % 3], seed);
            c.with_bias = seed % 5 != 0;
            c.with_residual = seed % 4 < 2;
            c.Narrow(kDTypes[seed % 7 < 5 ? 0 : seed % 7 - 4]);
            CheckLut4(c, tersor::SerialExecutor(), seed % 11 == 0);
          }
  });
}

TEST(EveryDTypeActivationAndOption) {
  UnderEachIsa([] {
    for (DType dtype : kDTypes)
      for (int32_t activation = 0; activation < tersor::kActivationCount; ++activation)
        for (int options = 0; options < 8; ++options) {
          Lut4Case c(options % 3 == 0 ? 2 : 20, 40, 70, options % 2 == 0 ? 4 : 6, 32, Tables::kPerRow,
                     static_cast<uint64_t>(options));
          c.Narrow(dtype);
          c.activation = static_cast<Activation>(activation);
          c.with_bias = options & 1;
          c.with_residual = options & 2;
          CheckLut4(c, tersor::SerialExecutor(), options & 4);
        }
  });
}

TEST(StaticRangeSmoothingAndRowsThatAreNotFinite) {
  UnderEachIsa([] {
    for (int64_t m : {2, 9})
      for (float x_scale : {0.0f, 0.011f, 10.0f}) {
        Lut4Case c(m, 33, 70, 4, 64, Tables::kOne, 11);
        c.x_scale = x_scale;
        c.x_zero_point = 91;
        CheckLut4(c);
        c.Smooth(12);
        CheckLut4(c);
        c.x[3] = INFINITY;
        c.x[static_cast<size_t>((m - 1) * 70)] = NAN;
        CheckLut4(c);
      }
  });
}

// Tables at their bounds, x at 0 and 255: every sum reaches its bound, in the deepest part too.
TEST(Extremes) {
  UnderEachIsa([] {
    for (int64_t m : {1, 6})
      for (int64_t k : {int64_t{128}, tersor::kMaxDepthS8 + 40}) {
        if (Quick() && k > 128) continue;
        Lut4Case c(m, 17, k, 4, 0, Tables::kOne, 5);
        for (size_t i = 0; i < c.table.size(); ++i) c.table[i] = i % 2 == 0 ? int8_t{127} : int8_t{-127};
        c.codes.assign(c.codes.size(), k % 3 == 0 ? uint8_t{0} : uint8_t{1});
        c.x.assign(c.x.size(), 1.0f);
        c.x_scale = 1.0f / 255.0f;
        c.Look();
        CheckLut4(c);
        CheckSums(Lut4Case(m, 3, 500, 8, 64, Tables::kPerGroup, 6));
      }
  });
}

// Without groups it is linear_s8 on the weight that the codes stand for.
TEST(EqualsTheDenseOp) {
  UnderEachIsa([] {
    for (int64_t m : {1, 40}) {
      Lut4Case c(m, 50, 200, 4, 0, Tables::kPerRow, 9);
      c.scale = c.group_scale;
      tersor::testing::CheckLinear(c, c.PackCodes(), tersor::SerialExecutor(), c.Expected(), false,
                                   tersor::testing::kLut4);
    }
  });
}

TEST(ThreadsChangeNothing) {
  for (int64_t m : {1, 8, 600})
    for (int64_t n : {20, 900}) {
      Lut4Case c(m, n, m == 600 ? 300 : 3000, 4, 128, Tables::kOne, 21);
      CheckLut4(c);
      Executor pool = tersor::PoolExecutor();
      for (int32_t threads : {2, 3}) {
        pool.threads = threads;
        CheckLut4(c, pool);
      }
    }
}

TEST(NoRows) { CheckLut4(Lut4Case(0, 5, 6, 4, 0, Tables::kOne, 13)); }

TEST(ArgumentsAreChecked) {
  const Lut4Case c(2, 5, 6, 4, 0, Tables::kOne, 20);
  const std::vector<char> packed = c.PackCodes();
  std::vector<float> y(10);
  tersor::LinearS8Args args{};
  args.m = 2;
  args.x = c.x.data();
  args.ldx = 6;
  args.packed = packed.data();
  args.packed_bytes = packed.size();
  args.y = y.data();
  args.ldy = 4;
  CHECK(Holds(ErrorOf([&] { tersor::LinearLut4(args, tersor::SerialExecutor()); }), "linear_lut4: row stride"));
  args.ldy = 5;
  CHECK(ErrorOf([&] { tersor::LinearLut4(args, tersor::SerialExecutor()); }).empty());
  --args.packed_bytes;
  CHECK(Holds(ErrorOf([&] { tersor::LinearLut4(args, tersor::SerialExecutor()); }), "packed code book weight"));
}

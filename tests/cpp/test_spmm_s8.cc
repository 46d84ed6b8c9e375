// The sparse op equals linear_s8's definition on the dense weight, bit for bit, whatever the pattern.
#include <iterator>

#include "core/registry.h"
#include "kernels/reference/spmm_s8_ref.h"
#include "sparse_cases.h"

namespace {

using tersor::Activation;
using tersor::DType;
using tersor::SerialExecutor;
using tersor::testing::CheckLinear;
using tersor::testing::ErrorOf;
using tersor::testing::Holds;
using tersor::testing::kPatterns;
using tersor::testing::kSparse;
using tersor::testing::LinearCase;
using tersor::testing::PackSparse;
using tersor::testing::Pattern;
using tersor::testing::Quick;
using tersor::testing::Thin;
using tersor::testing::TooManyFailures;
using tersor::testing::UnderEachIsa;

constexpr DType kDTypes[] = {DType::kF32, DType::kBf16, DType::kF16};

void CheckSerial(const LinearCase& c, bool in_place_residual = false) {
  if (!TooManyFailures()) CheckLinear(c, PackSparse(c), SerialExecutor(), c.Expected(), in_place_residual, kSparse);
}

// The sparse form of the definition: the quads of w that hold a non-zero.
std::vector<int32_t> SumsByDefinition(const LinearCase& c, const std::vector<uint8_t>& a, int64_t lda) {
  std::vector<int64_t> row_offsets{0}, column;
  std::vector<int8_t> quads;
  for (int64_t j = 0; j < c.n; ++j) {
    for (int64_t p = 0; p < c.k; p += 4) {
      int8_t quad[4] = {};
      for (int64_t i = 0; i < 4 && p + i < c.k; ++i) quad[i] = c.w[static_cast<size_t>(j * c.k + p + i)];
      if ((quad[0] | quad[1] | quad[2] | quad[3]) == 0) continue;
      column.push_back(p / 4);
      quads.insert(quads.end(), quad, quad + 4);
    }
    row_offsets.push_back(static_cast<int64_t>(column.size()));
  }
  std::vector<int32_t> sums(static_cast<size_t>(c.m * c.n));
  tersor::reference::SpmmS8(c.m, c.n, c.k, a.data(), lda, row_offsets.data(), column.data(),
                            reinterpret_cast<const int8_t (*)[4]>(quads.data()), sums.data(), c.n);
  return sums;
}

void CheckSums(const LinearCase& c, tersor::testing::Fill fill) {
  tersor::testing::Random random(5);
  const int64_t lda = c.k + 2;
  const std::vector<uint8_t> a = tersor::testing::Activations(fill, c.m * lda, random);
  const std::vector<char> packed = PackSparse(c);
  std::vector<int32_t> got(static_cast<size_t>(c.m * c.n)), dense(got);
  tersor::SpmmS8Sums(c.m, a.data(), lda, packed.data(), packed.size(), got.data(), c.n);
  tersor::reference::GemmS8(c.m, c.n, c.k, a.data(), lda, c.w.data(), dense.data(), c.n);
  CHECK_OR(got == dense, "%s m=%d n=%d k=%d: sums differ", tersor::ActiveIsa().c_str(), static_cast<int>(c.m),
           static_cast<int>(c.n), static_cast<int>(c.k));
  CHECK(SumsByDefinition(c, a, lda) == dense);
}

}  // namespace

TEST(IntegersOfEveryPattern) {
  UnderEachIsa([] {
    uint64_t seed = 1;
    for (Pattern pattern : kPatterns)
      for (int64_t m : {1, 17, 64, 65})
        for (int64_t n : {1, 5, 16, 64, 67})
          for (int64_t k : {1, 4, 6, 385}) {
            if (Quick() && (m == 17 || n == 16)) continue;
            LinearCase c(m, n, k, ++seed);
            Thin(pattern, seed, c);
            CheckSums(c, seed % 2 == 0 ? tersor::testing::Fill::kRandom : tersor::testing::Fill::kHighest);
          }
  });
}

TEST(AwkwardShapesOnEveryIsa) {
  UnderEachIsa([] {
    uint64_t seed = 1;
    for (int64_t m : {1, 2, 15, 16, 17, 33, 48, 63, 64, 65, 129})
      for (int64_t n : {1, 3, 15, 16, 17, 63, 64, 65, 130})
        for (int64_t k : {1, 3, 4, 5, 63, 64, 65, 383, 384, 385, 800}) {
          ++seed;
          if (Quick() ? seed % 11 != 0 : seed % 3 != 0 && k > 65) continue;
          LinearCase c(m, n, k, seed);
          Thin(kPatterns[seed % std::size(kPatterns)], seed, c);
          c.with_bias = seed % 5 != 0;
          c.with_residual = seed % 2 != 0;
          c.Narrow(kDTypes[seed % 4 == 3 ? 1 + seed / 4 % 2 : 0]);
          CheckSerial(c, seed % 7 == 0);
        }
  });
}

TEST(EveryDTypeActivationAndOption) {
  UnderEachIsa([] {
    for (DType dtype : kDTypes)
      for (int32_t activation = 0; activation < tersor::kActivationCount; ++activation)
        for (int options = 0; options < 8; ++options) {
          LinearCase c(options % 3 == 0 ? 2 : 70, 70, 39, static_cast<uint64_t>(options));
          Thin(Pattern::kUnstructured, 3, c);
          c.Narrow(dtype);
          c.activation = static_cast<Activation>(activation);
          c.with_bias = options & 1;
          c.with_residual = options & 2;
          CheckSerial(c, options & 4);
        }
  });
}

TEST(StaticRangeAndSmoothing) {
  UnderEachIsa([] {
    for (int32_t zero_point : {0, 91, 255})
      for (float x_scale : {0.0f, 0.011f, 0.0005f, 10.0f})
        for (DType dtype : kDTypes) {
          LinearCase c(7, 33, 70, 11);
          Thin(Pattern::kQuads, 4, c);
          c.Narrow(dtype);
          c.x_scale = x_scale;
          c.x_zero_point = zero_point;
          CheckSerial(c);
          c.Smooth(12);
          CheckSerial(c);
        }
  });
}

TEST(RowsWithNanOrInfinityAreNan) {
  UnderEachIsa([] {
    for (DType dtype : kDTypes)
      for (float x_scale : {0.0f, 0.01f})
        for (int64_t m : {2, 9, 70}) {
          LinearCase c(m, 20, 37, 12);
          Thin(Pattern::kOneFullRow, 5, c);  // NaN where the weights are zero, too
          c.Narrow(dtype);
          c.x_scale = x_scale;
          c.x[0] = INFINITY;
          c.x[static_cast<size_t>((m / 2) * 37 + 36)] = NAN;
          int64_t nan = 0;
          for (float v : c.Expected()) nan += std::isnan(v);
          CHECK(nan == 2 * 20);
          CheckSerial(c);
        }
  });
}

TEST(NoRowsAndZeroInput) {
  UnderEachIsa([] {
    CheckSerial(LinearCase(0, 5, 6, 13));
    LinearCase c(5, 18, 40, 14);
    Thin(Pattern::kUnstructured, 6, c);
    for (float value : {0.0f, 3.0e38f, -1e-42f}) {
      c.x.assign(c.x.size(), value);
      CheckSerial(c);
    }
  });
}

// Deep enough for every form to be chosen, several blocks of k, bands and strips.
TEST(EveryFormOfTheIndex) {
  UnderEachIsa([] {
    uint64_t seed = 40;
    for (Pattern pattern : {Pattern::kQuads, Pattern::kScatteredQuads, Pattern::kUnstructured})
      for (int64_t m : {1, 31, 33, 70})
        for (int64_t k : {500, 1601}) {
          if (Quick() && m > 31) continue;
          LinearCase c(m, 150, k, ++seed);
          Thin(pattern, seed, c);
          c.with_residual = m == 33;
          CheckSerial(c);
          CheckSums(c, tersor::testing::Fill::kHighest);
        }
  });
}

// More weight rows than are summed at once, and the deepest k.
TEST(LargeExtents) {
  UnderEachIsa([] {
    LinearCase wide(Quick() ? 2 : 20, 1100, 40, 16);
    Thin(Pattern::kQuads, 7, wide);
    wide.with_residual = true;
    CheckSerial(wide);
    LinearCase deep(2, 3, tersor::kMaxDepthS8, 17);
    CheckSerial(deep);
    deep.w.assign(deep.w.size(), -127);
    CheckSums(deep, tersor::testing::Fill::kHighest);
  });
}

TEST(WeightPackedForAWorseIsaStillRuns) {
  LinearCase c(9, 40, 50, 17);
  Thin(Pattern::kUnstructured, 8, c);
  const std::vector<float> expected = c.Expected();
  UnderEachIsa([&] {
    const std::vector<char> packed = PackSparse(c);
    UnderEachIsa([&] { CheckLinear(c, packed, SerialExecutor(), expected, false, kSparse); });
  });
}

TEST(ArgumentsAreChecked) {
  const LinearCase c(2, 5, 6, 20);
  const std::vector<char> packed = PackSparse(c);
  std::vector<float> y(10);
  tersor::LinearS8Args good{};
  good.m = 2;
  good.x = c.x.data();
  good.ldx = 6;
  good.packed = packed.data();
  good.packed_bytes = packed.size();
  good.y = y.data();
  good.ldy = 5;
  const auto error_with = [&](auto change) {
    tersor::LinearS8Args args = good;
    change(args);
    return ErrorOf([&] { tersor::SpmmS8(args, SerialExecutor()); });
  };
  CHECK(error_with([](auto&) {}).empty());
  CHECK(Holds(error_with([](auto& a) { a.m = -1; }), "spmm_s8: m=-1"));
  CHECK(Holds(error_with([](auto& a) { a.y = nullptr; }), "null"));
  CHECK(Holds(error_with([](auto& a) { a.ldy = 4; }), "stride"));
  CHECK(Holds(error_with([](auto& a) { a.activation = static_cast<Activation>(5); }), "5"));
  CHECK(Holds(error_with([](auto& a) { a.x_scale = 1e-40f; }), "x_scale"));
  CHECK(Holds(error_with([](auto& a) { --a.packed_bytes; }), "packed sparse int8 weight"));
  std::vector<int32_t> sums(10);
  CHECK(!ErrorOf([&] {
           const uint8_t a[12] = {};
           tersor::SpmmS8Sums(2, a, 5, packed.data(), packed.size(), sums.data(), 5);
         }).empty());
}

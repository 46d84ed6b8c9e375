#include "core/registry.h"
#include "linear_run.h"
#include "tersor/linear_s8.h"

namespace {

using tersor::Activation;
using tersor::DType;
using tersor::GemmS8Kernel;
using tersor::SerialExecutor;
using tersor::testing::CheckLinear;
using tersor::testing::ErrorOf;
using tersor::testing::Holds;
using tersor::testing::LinearCase;
using tersor::testing::Pack;
using tersor::testing::Quick;
using tersor::testing::TooManyFailures;
using tersor::testing::UnderEachIsa;

constexpr DType kDTypes[] = {DType::kF32, DType::kBf16, DType::kF16};

void CheckSerial(const LinearCase& c, bool in_place_residual = false) {
  if (!TooManyFailures()) CheckLinear(c, Pack(c), SerialExecutor(), c.Expected(), in_place_residual);
}

}  // namespace

TEST(AwkwardShapesOnEveryIsa) {
  UnderEachIsa([] {
    const GemmS8Kernel& gemm = *tersor::Selected().gemm_s8;
    const int32_t mr = gemm.mr, nr = gemm.nr, limit = gemm.row_limit;
    uint64_t seed = 1;
    for (int32_t m : tersor::testing::Positive({1, mr - 1, mr, mr + 1, 2 * mr + 1, limit - 1, limit, limit + 1}))
      for (int32_t n : tersor::testing::Positive({1, nr - 1, nr, nr + 1, 3 * nr + 5}))
        for (int64_t k : Quick() ? std::vector<int64_t>{1, 65} : tersor::testing::Depths()) {
          LinearCase c(m, n, k, seed);
          c.with_bias = seed % 3 != 0;
          c.with_residual = seed % 2 != 0;
          c.Narrow(kDTypes[seed % 4 == 3 ? 1 + seed / 4 % 2 : 0]);
          CheckSerial(c, seed % 5 == 0);
          ++seed;
        }
  });
}

TEST(EveryDTypeActivationAndOption) {
  UnderEachIsa([] {
    for (DType dtype : kDTypes)
      for (int32_t activation = 0; activation < tersor::kActivationCount; ++activation)
        for (int options = 0; options < 8; ++options) {
          LinearCase c(options % 3 == 0 ? 2 : 13, 50, 39, static_cast<uint64_t>(options));
          c.Narrow(dtype);
          c.activation = static_cast<Activation>(activation);
          c.with_bias = options & 1;
          c.with_residual = options & 2;
          CheckSerial(c, options & 4);
        }
  });
}

TEST(StaticRange) {
  UnderEachIsa([] {
    for (int32_t zero_point : {0, 91, 255})
      for (float x_scale : {0.011f, 0.0005f, 10.0f}) {  // fits; most values saturate; all become the zero point
        LinearCase c(7, 33, 70, 11);
        c.x_scale = x_scale;
        c.x_zero_point = zero_point;
        CheckSerial(c);
      }
  });
}

// 16-bit inputs are widened first: the products are float32, not rounded to the type of x.
TEST(SmoothedByTheDefinition) {
  UnderEachIsa([] {
    const GemmS8Kernel& gemm = *tersor::Selected().gemm_s8;
    uint64_t seed = 40;
    for (DType dtype : kDTypes)
      for (int64_t m : {int64_t{1}, int64_t{gemm.row_limit} + 1, int64_t{2} * gemm.mr + 1})
        for (int64_t k : {1, 7, 33, 130})
          for (float x_scale : {0.0f, 0.004f}) {
            LinearCase c(m, gemm.nr + 3, k, ++seed);
            c.Narrow(dtype);
            c.Smooth(seed);
            c.x_scale = x_scale;
            c.x_zero_point = 100;
            c.with_residual = seed % 2 == 0;
            CheckSerial(c);
          }
    LinearCase deep(2, 3, tersor::kMaxDepthS8 + 5, 41);
    deep.Smooth(41);
    if (!Quick()) CheckSerial(deep);
  });
}

TEST(SmoothingEqualsMultiplyingTheInputFirst) {
  UnderEachIsa([] {
    LinearCase c(9, 40, 77, 42);
    c.Smooth(42);
    LinearCase multiplied = c;
    multiplied.input_scale.clear();
    for (size_t i = 0; i < c.x.size(); ++i) multiplied.x[i] *= c.input_scale[i % 77];
    CheckLinear(c, Pack(c), SerialExecutor(), multiplied.Expected());
    std::vector<char> packed = Pack(c);
    tersor::SetInputScaleS8(nullptr, packed.data(), packed.size());
    CheckLinear(multiplied, packed, SerialExecutor(), multiplied.Expected());
    // A product that overflows is an infinity like any other: its row is NaN.
    c.input_scale[5] = 3e38f;
    c.x[3 * 77 + 5] = 2.0f;
    CHECK(std::isnan(c.Expected()[3 * 40]));
    CheckSerial(c);
  });
}

TEST(RowsWithNanOrInfinityAreNan) {
  UnderEachIsa([] {
    for (DType dtype : kDTypes)
      for (float x_scale : {0.0f, 0.01f})
        for (int64_t m : {2, 9, 30}) {
          LinearCase c(m, 20, 37, 12);
          c.Narrow(dtype);
          c.x_scale = x_scale;
          c.x[0] = INFINITY;
          c.x[static_cast<size_t>((m / 2) * 37 + 36)] = NAN;
          const std::vector<float> expected = c.Expected();
          int64_t nan = 0;
          for (float v : expected) nan += std::isnan(v);
          CHECK(nan == 2 * 20);
          CheckSerial(c);
        }
  });
}

TEST(ZeroRowsAndZeroInput) {
  UnderEachIsa([] {
    CheckSerial(LinearCase(0, 5, 6, 13));
    LinearCase c(5, 18, 40, 14);
    c.x.assign(c.x.size(), 0.0f);
    CheckSerial(c);
    c.x.assign(c.x.size(), 3.0e38f);
    CheckSerial(c);
    c.x.assign(c.x.size(), -1e-42f);
    CheckSerial(c);
  });
}

TEST(DeeperThanOneChunk) {
  UnderEachIsa([] {
    for (int64_t k : {tersor::kMaxDepthS8, tersor::kMaxDepthS8 + 1, 2 * tersor::kMaxDepthS8 + 5})
      for (int64_t m : {int64_t{1}, int64_t{13}}) {
        if (Quick() && m > 1) continue;
        LinearCase c(m, 3, k, 15);
        c.with_residual = true;
        c.activation = Activation::kGelu;
        CheckSerial(c);
        c.Narrow(DType::kBf16);
        CheckSerial(c);
      }
  });
}

// More rows than the quantised block of the front end holds, in both directions of its loops.
TEST(ManyBlocksOfRows) {
  UnderEachIsa([] {
    LinearCase c(Quick() ? 60 : 500, 40, Quick() ? 5000 : 1000, 16);
    c.with_residual = true;
    CheckSerial(c);
  });
}

TEST(WeightPackedForAWorseIsaStillRuns) {
  const LinearCase c(9, 40, 50, 17);
  const std::vector<float> expected = c.Expected();
  UnderEachIsa([&] {
    const std::vector<char> packed = Pack(c);
    UnderEachIsa([&] { CheckLinear(c, packed, SerialExecutor(), expected); });
  });
}

TEST(IntegersThroughTheFrontEnd) {
  UnderEachIsa([] {
    const LinearCase c(17, 37, 129, 18);
    const std::vector<char> packed = Pack(c);
    tersor::testing::Random random(19);
    const std::vector<uint8_t> a = tersor::testing::Activations(tersor::testing::Fill::kRandom, 17 * 131, random);
    std::vector<int32_t> want(17 * 37), got(17 * 40, -1);
    tersor::reference::GemmS8(17, 37, 129, a.data(), 131, c.w.data(), want.data(), 37);
    for (int64_t m : {0, 1, 5, 17}) {
      tersor::GemmS8(m, a.data(), 131, packed.data(), packed.size(), got.data(), 40, SerialExecutor());
      for (size_t i = 0; i < 17; ++i)
        for (size_t j = 0; j < 40; ++j)
          CHECK(got[i * 40 + j] == (j < 37 && static_cast<int64_t>(i) < m ? want[i * 37 + j] : -1));
      got.assign(got.size(), -1);
    }
    CHECK(!ErrorOf([&] {
             tersor::GemmS8(1, a.data(), 100, packed.data(), packed.size(), got.data(), 40, SerialExecutor());
           }).empty());
  });
}

TEST(ArgumentsAreChecked) {
  const LinearCase c(2, 5, 6, 20);
  const std::vector<char> packed = Pack(c);
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
    return ErrorOf([&] { tersor::LinearS8(args, SerialExecutor()); });
  };
  CHECK(error_with([](auto&) {}).empty());
  CHECK(Holds(error_with([](auto& a) { a.m = -1; }), "m=-1"));
  CHECK(Holds(error_with([](auto& a) { a.x = nullptr; }), "null"));
  CHECK(Holds(error_with([](auto& a) { a.y = nullptr; }), "null"));
  CHECK(Holds(error_with([](auto& a) { a.ldy = 4; }), "stride"));
  CHECK(Holds(error_with([](auto& a) { a.dtype = static_cast<DType>(3); }), "dtype code 3"));
  CHECK(Holds(error_with([](auto& a) { a.activation = static_cast<Activation>(5); }), "5"));
  CHECK(Holds(error_with([](auto& a) { a.x_scale = -1.0f; }), "x_scale"));
  CHECK(Holds(error_with([](auto& a) { a.x_scale = NAN; }), "x_scale"));
  CHECK(Holds(error_with([](auto& a) { a.x_scale = 1e-40f; }), "x_scale"));
  CHECK(Holds(error_with([](auto& a) { a.x_zero_point = 256; }), "256"));
  CHECK(Holds(error_with([](auto& a) { a.packed = nullptr; }), "packed int8 weight"));
  CHECK(Holds(error_with([](auto& a) { --a.packed_bytes; }), "packed int8 weight"));
  CHECK(Holds(ErrorOf([] { tersor::Activate(static_cast<Activation>(9), 0, nullptr); }), "9"));
}

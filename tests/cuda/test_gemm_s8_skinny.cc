#include "dense_case.h"
#include "emulation.h"

namespace tersor::testing {
namespace {

struct SkinnyCase {
  DenseCase dense;
  EpilogueCase epilogue;
  int64_t ldx;
  Values x;
  std::vector<float> input_scale;  // or empty
  std::vector<uint8_t> workspace;

  SkinnyCase(const EpilogueKind& kind, int64_t m, int64_t n, int64_t k, int64_t gap, uint64_t seed)
      : dense(m, n, k, Fill::kRandom, seed),
        epilogue(kind, m, n, 1e-4f, seed, gap),
        ldx(k + gap),
        x(kind.dtype, static_cast<size_t>((m - 1) * ldx + k)),
        workspace(size_t{1} << 20, 0) {}

  void Launch(int splits, uint32_t schedule) {
    cuda::GemmS8SkinnyArgs args = {};
    args.m = dense.m, args.n = dense.n, args.k = dense.k;
    args.x = x.data();
    args.ldx = ldx;
    args.input_scale = input_scale.empty() ? nullptr : input_scale.data();
    args.packed = dense.packed.data();
    args.epilogue = epilogue.Args(dense.col_sum);
    args.epilogue.row_scale = nullptr;
    args.epilogue.row_zero = nullptr;
    args.epilogue.col_sum = nullptr;
    args.workspace = workspace.data();
    args.workspace_bytes = static_cast<int64_t>(workspace.size());
    args.splits = splits;
    emulate::SetSchedule(schedule);
    CHECK(cuda::GemmS8Skinny(args, nullptr) == 0);
  }
  float X(int64_t i, int64_t p) const {
    const float v = x.Get(static_cast<size_t>(i * ldx + p));
    return input_scale.empty() ? v : x.Round(v * input_scale[static_cast<size_t>(p)]);
  }
  // In double precision, where every product and, for these values, every sum is exact.
  double Sum(int64_t i, int64_t j, bool magnitudes) const {
    double sum = 0.0;
    for (int64_t p = 0; p < dense.k; ++p) {
      const double product = double{X(i, p)} * dense.w[static_cast<size_t>(j * dense.k + p)];
      sum += magnitudes ? std::fabs(product) : product;
    }
    return sum;
  }
};

// With small integers for x, whatever the order, no float32 sum is rounded: y is exact, bit for bit.
void CheckExact(const EpilogueKind& kind, int64_t m, int64_t n, int64_t k, int64_t gap, bool smooth, int splits,
                uint64_t seed) {
  SkinnyCase c(kind, m, n, k, gap, seed);
  Random random(seed + 1);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t p = 0; p < k; ++p) c.x.Set(static_cast<size_t>(i * c.ldx + p), static_cast<float>(random.Int(-8, 8)));
  if (smooth)
    for (int64_t p = 0; p < k; ++p) c.input_scale.push_back(random.Int(0, 1) == 0 ? 0.5f : 1.0f);
  c.Launch(splits, static_cast<uint32_t>(seed % 3));
  std::vector<float> scaled;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j)
      scaled.push_back(static_cast<float>(c.Sum(i, j, false)) * c.epilogue.col_scale[static_cast<size_t>(j)]);
  c.epilogue.Check("skinny", c.epilogue.Finish(scaled));
}

}  // namespace

TEST(ExactForIntegers) {
  uint64_t seed = 1;
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16})
    for (const int64_t m : {1, 8, 9, 16})
      for (const int64_t n : {1, 32, 33, 70}) {
        if (Quick() && n != 33) continue;
        const int64_t k = static_cast<int64_t>(seed * 53 % 700 + 1);
        CheckExact({dtype, Activation::kNone, true, false}, m, n, k, 0, false, 1 + static_cast<int>(seed % 3), seed);
        ++seed;
      }
}

TEST(EveryEpilogueStrideAndInputScale) {
  uint64_t seed = 200;
  for (const EpilogueKind& kind : kEpilogues)
    for (const int64_t gap : {0, 1, 4})
      for (const bool smooth : {false, true}) {
        CheckExact(kind, 5, 40, 132, gap, smooth, 1, seed);
        ++seed;
      }
}

TEST(RoundedSumsStayWithinTheirBound) {
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    SkinnyCase c({dtype, Activation::kNone, false, false}, 11, 48, 900, 0, 3);
    Random random(4);
    c.x.Fill(random, -3.0f, 3.0f);
    c.Launch(2, 1);
    for (int64_t i = 0; i < 11; ++i)
      for (int64_t j = 0; j < 48; ++j) {
        const double scale = c.epilogue.col_scale[static_cast<size_t>(j)], want = c.Sum(i, j, false) * scale;
        const double got = c.epilogue.y().Get(static_cast<size_t>(i * c.epilogue.ld() + j));
        const double last = dtype == DType::kF32 ? 0x1p-23 : dtype == DType::kBf16 ? 0x1p-8 : 0x1p-11;
        const double bound = 900 * 0x1p-22 * c.Sum(i, j, true) * scale + last * std::fabs(want) + 0x1p-24;
        CHECK_OR(std::fabs(got - want) <= bound, "[%ld][%ld] is %a, not %a", long{i}, long{j}, got, want);
      }
  }
}

TEST(RaceFree) { CheckExact({DType::kF16, Activation::kNone, true, false}, 9, 40, 300, 0, false, 2, 500); }

// A float32 keeps all of its bits on the way through bfloat16.
TEST(Float32IsNotShortened) {
  SkinnyCase c({DType::kF32, Activation::kNone, false, false}, 3, 16, 1, 0, 5);
  const float x[3] = {0x1.fffffep0f, -0x1.234567p-20f, 0x1.000002p100f};
  for (size_t i = 0; i < 3; ++i) c.x.Set(i, x[i]);
  for (int8_t& w : c.dense.w) w = 1;
  CHECK(cuda::PackGemmS8(16, 1, c.dense.w.data(), 1, c.dense.packed.data(), c.dense.col_sum.data(), nullptr) == 0);
  for (float& scale : c.epilogue.col_scale) scale = 1.0f;
  c.Launch(1, 0);
  for (size_t i = 0; i < 48; ++i) CHECK(c.epilogue.y().Get(i) == x[i / 16]);
}

TEST(NaNAndInfinityTravel) {
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    SkinnyCase c({dtype, Activation::kNone, false, false}, 3, 16, 40, 0, 6);
    Random random(7);
    c.x.Fill(random, -1.0f, 1.0f);
    c.x.Set(7, std::nanf(""));
    c.x.Set(40 + 39, INFINITY);
    for (int8_t& w : c.dense.w) w = 3;
    CHECK(cuda::PackGemmS8(16, 40, c.dense.w.data(), 40, c.dense.packed.data(), c.dense.col_sum.data(), nullptr) == 0);
    c.Launch(1, 0);
    for (size_t j = 0; j < 16; ++j) {
      CHECK(std::isnan(c.epilogue.y().Get(j)));
      CHECK(c.epilogue.y().Get(16 + j) == INFINITY);
      CHECK(std::isfinite(c.epilogue.y().Get(32 + j)));
    }
  }
}

}  // namespace tersor::testing

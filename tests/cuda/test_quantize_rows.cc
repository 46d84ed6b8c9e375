#include <cfloat>

#include "../cpp/linear_ref.h"
#include "check.h"
#include "emulation.h"
#include "epilogue_case.h"
#include "tersor/cuda.h"

namespace tersor::testing {
namespace {

struct Options {
  bool smooth = false, row_sum = true;
  float x_scale = 0.0f;
  int32_t x_zero_point = 0;
};

// Against the definition, for the values that x holds of its dtype.
void CheckRows(DType dtype, int64_t m, int64_t k, int64_t gap, const Options& options, uint64_t seed,
               const std::vector<float>& special = {}) {
  LinearCase c(m, 1, k, seed);
  for (size_t i = 0; i < special.size(); ++i) c.x[i] = special[i];
  c.Narrow(dtype);
  if (options.smooth) c.Smooth(seed);
  c.x_scale = options.x_scale;
  c.x_zero_point = options.x_zero_point;
  const int64_t ldx = k + gap, ldq = cuda::PadDepthS8(k) + 16;
  Values x(dtype, static_cast<size_t>((m - 1) * ldx + k));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t p = 0; p < k; ++p) x.Set(static_cast<size_t>(i * ldx + p), c.x[static_cast<size_t>(i * k + p)]);
  std::vector<uint8_t> q(static_cast<size_t>(m * ldq), 0xa5);
  std::vector<float> scale(static_cast<size_t>(m), -1.0f);
  std::vector<int32_t> zero(static_cast<size_t>(m), -1), sum(static_cast<size_t>(m), -1);
  const cuda::QuantizeRowsArgs args = {m,
                                       k,
                                       x.data(),
                                       ldx,
                                       dtype,
                                       options.smooth ? c.input_scale.data() : nullptr,
                                       options.x_scale,
                                       options.x_zero_point,
                                       q.data(),
                                       ldq,
                                       scale.data(),
                                       zero.data(),
                                       options.row_sum ? sum.data() : nullptr};
  emulate::SetSchedule(static_cast<uint32_t>(seed % 3));
  CHECK(cuda::QuantizeRows(args, nullptr) == 0);
  for (int64_t i = 0; i < m; ++i) {
    std::vector<float> row(c.x.begin() + i * k, c.x.begin() + (i + 1) * k);
    for (size_t p = 0; p < c.input_scale.size(); ++p) row[p] *= c.input_scale[p];
    const reference::RowQuantization want = c.ChooseRowOf(row.data());
    const size_t r = static_cast<size_t>(i);
    CHECK_OR(SameFloat(scale[r], want.scale) && zero[r] == want.zero_point, "m=%ld k=%ld row %ld: %a %d, not %a %d",
             long{m}, long{k}, long{i}, double{scale[r]}, zero[r], double{want.scale}, want.zero_point);
    int32_t total = 0;
    for (int64_t p = 0; p < ldq; ++p) {
      uint8_t value = 0;
      if (p < k && !std::isnan(want.scale))
        value = reference::QuantizeOne(row[static_cast<size_t>(p)], want.inv_scale, want.zero_point);
      if (p >= cuda::PadDepthS8(k)) value = 0xa5;
      total += p < k ? value : 0;
      CHECK_OR(q[static_cast<size_t>(i * ldq + p)] == value, "m=%ld k=%ld q[%ld][%ld] is %d, not %d", long{m}, long{k},
               long{i}, long{p}, q[static_cast<size_t>(i * ldq + p)], value);
      if (TooManyFailures()) return;
    }
    CHECK(sum[r] == (options.row_sum ? total : -1));
  }
}

}  // namespace

TEST(EveryDepthAndDType) {
  uint64_t seed = 1;
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16})
    for (const int64_t k : {1, 15, 16, 17, 63, 64, 65, 500, 512, 8191, 8200, 20000}) {
      if (Quick() && k > 600) continue;
      for (const int64_t gap : {0, 8}) CheckRows(dtype, k > 600 ? 1 : 3, k, gap, {}, seed++);
    }
}

TEST(SmoothedStaticAndWithoutSums) {
  uint64_t seed = 100;
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16})
    for (const int64_t k : {5, 64, 333}) {
      CheckRows(dtype, 2, k, 0, {true, true, 0.0f, 0}, seed++);
      CheckRows(dtype, 2, k, 1, {false, false, 0.011f, 100}, seed++);
      CheckRows(dtype, 2, k, 0, {true, true, 0.004f, 0}, seed++);
    }
}

TEST(ExtremeRows) {
  const std::vector<std::vector<float>> rows = {
      {0.0f, -0.0f, 0.0f},   {FLT_MAX, -FLT_MAX, 1.0f},     {0x1p-149f, -0x1p-149f, 0.0f},  {FLT_MAX, FLT_MAX, FLT_MAX},
      {-5.0f, -6.0f, -7.0f}, {std::nanf(""), 1.0f, 2.0f},   {INFINITY, 1.0f, 2.0f},         {1.0f, -INFINITY, 2.0f},
      {0.5f, 1.5f, 255.0f},  {-0x1p-126f, 0x1p-120f, 0.0f}, {-FLT_MAX, -FLT_MAX, -FLT_MAX},
  };
  for (const std::vector<float>& row : rows) {
    CheckRows(DType::kF32, 2, 3, 0, {}, 7, row);
    CheckRows(DType::kF32, 2, 3, 0, {false, true, 0.5f, 17}, 8, row);
  }
}

TEST(RaceFree) { CheckRows(DType::kF16, 1, 1100, 0, {}, 300); }

TEST(BadCallsAreErrors) {
  cuda::QuantizeRowsArgs args = {};
  args.m = 1, args.k = 100, args.ldq = 112;
  CHECK(cuda::QuantizeRows(args, nullptr) == cuda::kInvalidValue);
  args.ldq = 130;
  CHECK(cuda::QuantizeRows(args, nullptr) == cuda::kInvalidValue);
  args.ldq = 128, args.dtype = static_cast<DType>(9);
  CHECK(cuda::QuantizeRows(args, nullptr) == cuda::kInvalidValue);
  args.m = 0;
  CHECK(cuda::QuantizeRows(args, nullptr) == 0);
}

}  // namespace tersor::testing

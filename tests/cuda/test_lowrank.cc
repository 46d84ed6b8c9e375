// lowrank_s8 against two linear_s8 by definition, lowrank_f16 with sums that are exact.
#include <algorithm>
#include <cmath>

#include "../cpp/gemm_cases.h"
#include "emulation.h"
#include "epilogue_case.h"
#include "tersor/cuda.h"
#include "tersor/cuda_pack.h"

namespace tersor::testing {
namespace {

struct Shape {
  int64_t m, n, k, rank;
};
const Shape kShapes[] = {{1, 1, 1, 1},      {3, 33, 65, 7},    {32, 32, 64, 32}, {33, 40, 200, 33},
                         {5, 520, 130, 64}, {17, 30, 70, 100}, {2, 16, 96, 256}};

// [rows][PadDepthS8(columns)] with zeros behind the columns.
template <typename T>
std::vector<T> PadRows(int64_t rows, int64_t columns, const std::vector<T>& values) {
  const int64_t padded = cuda::PadDepthS8(columns);
  std::vector<T> out(static_cast<size_t>(rows * padded), T{0});
  for (int64_t i = 0; i < rows; ++i) std::copy_n(values.begin() + i * columns, columns, out.begin() + i * padded);
  return out;
}

struct CaseS8 {
  Shape s;
  std::vector<uint8_t> x;
  std::vector<int8_t> down, up;
  std::vector<float> down_scale;
  std::vector<int32_t> down_sum, up_sum;

  CaseS8(const Shape& shape, uint64_t seed) : s(shape) {
    Random random(seed);
    x = PadRows(s.m, s.k, Activations(Fill::kRandom, s.m * s.k, random));
    down = Weights(Fill::kRandom, s.rank * s.k, random);
    up = Weights(Fill::kRandom, s.n * s.rank, random);
    for (int64_t r = 0; r < s.rank; ++r) down_scale.push_back(random.Uniform(0.001f, 0.01f));
    down_sum.resize(static_cast<size_t>(s.rank));
    up_sum.resize(static_cast<size_t>(s.n));
    cuda::ColumnSums(s.rank, s.k, down.data(), down_sum.data());
    cuda::ColumnSums(s.n, s.rank, up.data(), up_sum.data());
  }

  int Launch(const cuda::Epilogue& epilogue) const {
    const std::vector<int8_t> d = PadRows(s.rank, s.k, down), u = PadRows(s.n, s.rank, up);
    return cuda::LowRankS8({s.m, s.n, s.k, s.rank, x.data(), cuda::PadDepthS8(s.k), d.data(), down_scale.data(),
                            down_sum.data(), u.data(), epilogue},
                           nullptr);
  }
  // The sums of the second product, and the quantisation of each row of h.
  std::vector<int32_t> Sums(const EpilogueCase& e, std::vector<reference::RowQuantization>& rows) const {
    std::vector<int32_t> first(static_cast<size_t>(s.m * s.rank)), second(static_cast<size_t>(s.m * s.n));
    reference::GemmS8(s.m, s.rank, s.k, x.data(), cuda::PadDepthS8(s.k), down.data(), first.data(), s.rank);
    std::vector<uint8_t> q(first.size());
    for (int64_t i = 0; i < s.m; ++i) {
      std::vector<float> h;
      float lo = 0.0f, hi = 0.0f;
      for (int64_t r = 0; r < s.rank; ++r) {
        const size_t column = static_cast<size_t>(r), row = static_cast<size_t>(i);
        h.push_back(reference::Epilogue(first[static_cast<size_t>(i * s.rank + r)], e.row_zero[row], down_sum[column],
                                        e.row_scale[row], down_scale[column], 0.0f));
        lo = std::fmin(lo, h.back());
        hi = std::fmax(hi, h.back());
        if (!std::isfinite(h.back())) lo = hi = std::nanf("");
      }
      rows.push_back(reference::ChooseRow(lo, hi));
      for (int64_t r = 0; r < s.rank; ++r)
        q[static_cast<size_t>(i * s.rank + r)] =
            std::isnan(rows.back().scale)
                ? uint8_t{0}
                : reference::QuantizeOne(h[static_cast<size_t>(r)], rows.back().inv_scale, rows.back().zero_point);
    }
    reference::GemmS8(s.m, s.n, s.rank, q.data(), s.rank, up.data(), second.data(), s.n);
    return second;
  }
  void Check(EpilogueCase& e) const {
    CHECK(Launch(e.Args(up_sum)) == 0);
    std::vector<reference::RowQuantization> rows;
    const std::vector<int32_t> sums = Sums(e, rows);
    std::vector<float> scaled(sums.size());
    for (size_t i = 0; i < sums.size(); ++i) {
      const size_t row = i / static_cast<size_t>(s.n), column = i % static_cast<size_t>(s.n);
      scaled[i] = reference::Epilogue(sums[i], rows[row].zero_point, up_sum[column], rows[row].scale,
                                      e.col_scale[column], -0.0f);
    }
    e.Check("lowrank_s8", e.Finish(scaled));
  }
};

TEST(LowRankS8) {
  uint64_t seed = 1;
  for (const Shape& s : kShapes)
    for (const EpilogueKind& kind : kEpilogues) {
      if (++seed % 2 == 0 && (Quick() || s.m * s.n > 600)) continue;
      emulate::SetSchedule(static_cast<uint32_t>(seed % 3));
      EpilogueCase epilogue(kind, s.m, s.n, 1.0f / 64.0f, seed, static_cast<int64_t>(seed % 2));
      CaseS8(s, seed).Check(epilogue);
    }
  emulate::SetSchedule(0);
}

// A row whose scale is NaN, and one whose h overflows: their outputs are NaN, the others as they were.
TEST(LowRankS8NotFinite) {
  const CaseS8 c({5, 20, 64, 10}, 3);
  EpilogueCase epilogue(EpilogueKind{}, 5, 20, 1.0f / 64.0f, 3);
  epilogue.row_scale[1] = std::nanf("");
  epilogue.row_scale[3] = 3e38f;
  c.Check(epilogue);
  CHECK(std::isnan(epilogue.y().Get(20)) && std::isnan(epilogue.y().Get(60)) && !std::isnan(epilogue.y().Get(40)));
}

TEST(LowRankS8Sums) {
  const CaseS8 c({9, 70, 100, 20}, 5);
  EpilogueCase rows_of(EpilogueKind{}, 9, 70, 1.0f, 5);
  std::vector<reference::RowQuantization> rows;
  std::vector<int32_t> sums(9 * 70, -1);
  cuda::Epilogue e = rows_of.Args(c.up_sum);
  e.sums = sums.data();
  e.ldy = 70;
  CHECK(c.Launch(e) == 0);
  CHECK(sums == c.Sums(rows_of, rows));
}

TEST(LowRankRefusesRanks) {
  for (const int64_t rank : {int64_t{0}, cuda::kMaxRank + 1}) {
    cuda::LowRankArgs args = {};
    args.m = args.n = args.k = 1;
    args.rank = rank;
    CHECK(cuda::LowRankS8(args, nullptr) == cuda::kInvalidValue &&
          cuda::LowRankF16(args, nullptr) == cuda::kInvalidValue);
  }
}

std::vector<uint16_t> ToHalf(const std::vector<int32_t>& values) {
  std::vector<uint16_t> half;
  for (int32_t v : values) half.push_back(FloatToHalf(DType::kF16, static_cast<float>(v)));
  return half;
}
std::vector<int32_t> Integers(int64_t count, int32_t bound, Random& random) {
  std::vector<int32_t> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(random.Int(-bound, bound));
  return values;
}

// Integers whose float32 sums are exact in any order; with large x, h has to be rounded to float16.
TEST(LowRankF16) {
  uint64_t seed = 1;
  for (const Shape& s : kShapes)
    for (const int32_t bound : {4, 1000}) {
      if (Quick() && bound == 4) continue;
      Random random(++seed);
      const std::vector<int32_t> x = Integers(s.m * s.k, bound, random), down = Integers(s.rank * s.k, 2, random);
      const std::vector<int32_t> up = Integers(s.n * s.rank, 2, random);
      // Rows of x end where they end; odd strides take the way without vectors.
      const int64_t ldx = seed % 2 == 0 ? (s.k + 7) / 8 * 8 : s.k + 1;
      std::vector<uint16_t> rows(static_cast<size_t>((s.m - 1) * ldx + s.k), 0x7e00);  // NaN between rows
      const std::vector<uint16_t> half = ToHalf(x);
      for (int64_t i = 0; i < s.m; ++i) std::copy_n(half.begin() + i * s.k, s.k, rows.begin() + i * ldx);
      const std::vector<uint16_t> d = PadRows(s.rank, s.k, ToHalf(down)), u = PadRows(s.n, s.rank, ToHalf(up));
      const EpilogueKind& kind = kEpilogues[seed % 6];
      EpilogueCase epilogue(kind, s.m, s.n, 1.0f / 64.0f, seed);
      const std::vector<int32_t> unused(static_cast<size_t>(s.n));
      cuda::Epilogue e = epilogue.Args(unused);
      e.row_scale = nullptr;
      CHECK(cuda::LowRankF16({s.m, s.n, s.k, s.rank, rows.data(), ldx, d.data(), nullptr, nullptr, u.data(), e},
                             nullptr) == 0);
      std::vector<float> scaled;
      for (int64_t i = 0; i < s.m; ++i) {
        std::vector<double> h;
        for (int64_t r = 0; r < s.rank; ++r) {
          int64_t sum = 0;
          for (int64_t p = 0; p < s.k; ++p)
            sum += int64_t{x[static_cast<size_t>(i * s.k + p)]} * down[static_cast<size_t>(r * s.k + p)];
          h.push_back(HalfToFloat(DType::kF16, FloatToHalf(DType::kF16, static_cast<float>(sum))));
        }
        for (int64_t j = 0; j < s.n; ++j) {
          double sum = 0.0;
          for (int64_t r = 0; r < s.rank; ++r)
            sum += h[static_cast<size_t>(r)] * up[static_cast<size_t>(j * s.rank + r)];
          CHECK(std::fabs(sum) < 0x1p24);
          scaled.push_back(static_cast<float>(sum) * epilogue.col_scale[static_cast<size_t>(j)]);
        }
      }
      epilogue.Check("lowrank_f16", epilogue.Finish(scaled));
    }
}

// What the thread sanitizer looks at: two tiles of tokens, two shares of columns, two of the rank.
TEST(RaceFree) {
  EpilogueCase epilogue(EpilogueKind{}, 33, 300, 1.0f / 64.0f, 9);
  CaseS8({33, 300, 130, 40}, 9).Check(epilogue);
}

}  // namespace
}  // namespace tersor::testing

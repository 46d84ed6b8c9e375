// Every quantize kernel against the definition, value by value.
#include <cfloat>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "core/registry.h"
#include "data.h"
#include "kernels/reference/linear_s8_ref.h"
#include "ops/quantize_rows.h"
#include "tersor/isa.h"
#include "tersor/linear_s8.h"

namespace {

using tersor::QuantizeKernel;
using tersor::reference::ChooseRow;
using tersor::reference::QuantizeOne;
using tersor::reference::RowQuantization;
using tersor::testing::Fenced;
using tersor::testing::Random;

constexpr float kInf = std::numeric_limits<float>::infinity();

template <typename Body>
void ForEachQuantize(Body body) {
  for (const tersor::KernelSet* set : tersor::RunnableKernelSets())
    if (set->quantize != nullptr) body(*set->quantize);
}

struct Range {
  float lo, hi;
};

Range RangeOf(const std::vector<float>& x) {
  Range range{0.0f, 0.0f};
  for (float v : x) {
    if (!std::isfinite(v)) return {std::nanf(""), std::nanf("")};
    range = {std::fmin(range.lo, v), std::fmax(range.hi, v)};
  }
  return range;
}

bool Same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

struct Checker {
  const QuantizeKernel& kernel;
  Fenced x_memory{size_t{1} << 16}, q_memory{size_t{1} << 16};

  void RangeIs(const std::vector<float>& x) {
    const Range want = RangeOf(x);
    float got[2] = {7.0f, 7.0f};
    kernel.row_range(static_cast<int64_t>(x.size()), x_memory.Copy(x), got);
    CHECK_OR(Same(got[0], want.lo) && Same(got[1], want.hi), "%s k=%zu: range [%a, %a], not [%a, %a]", kernel.id,
             x.size(), static_cast<double>(got[0]), static_cast<double>(got[1]), static_cast<double>(want.lo),
             static_cast<double>(want.hi));
  }

  void RowIs(const std::vector<float>& x, float inv_scale, int32_t zero_point) {
    uint8_t* q = q_memory.Place<uint8_t>(x.size());
    const int64_t k = static_cast<int64_t>(x.size());
    const int32_t sum = kernel.quantize_row(k, x_memory.Copy(x), inv_scale, zero_point, q);
    int32_t want_sum = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const uint8_t want = QuantizeOne(x[i], inv_scale, zero_point);
      want_sum += want;
      CHECK_OR(q[i] == want, "%s k=%zu: %a * %a + %d at %zu is %d, not %d", kernel.id, x.size(),
               static_cast<double>(x[i]), static_cast<double>(inv_scale), zero_point, i, q[i], want);
    }
    CHECK_OR(sum == want_sum, "%s k=%zu: sum %d, not %d", kernel.id, x.size(), sum, want_sum);
    CHECK_OR(q_memory.FrontIntact(), "%s k=%zu wrote in front of q", kernel.id, x.size());
  }

  // As the op does it: the range chooses scale and zero point.
  void Dynamic(const std::vector<float>& x) {
    RangeIs(x);
    const Range range = RangeOf(x);
    const RowQuantization row = ChooseRow(range.lo, range.hi);
    if (!std::isnan(row.scale)) RowIs(x, row.inv_scale, row.zero_point);
  }
};

std::vector<float> Uniform(size_t k, float lo, float hi, Random& random) {
  std::vector<float> x(k);
  for (float& v : x) v = random.Uniform(lo, hi);
  return x;
}

}  // namespace

TEST(RandomRowsOfEveryLength) {
  ForEachQuantize([](const QuantizeKernel& kernel) {
    Checker checker{kernel};
    Random random(1);
    for (size_t k = 0; k <= 70; ++k) {
      checker.Dynamic(Uniform(k, -3.0f, 5.0f, random));
      checker.Dynamic(Uniform(k, 0.5f, 5.0f, random));
      checker.Dynamic(Uniform(k, -5.0f, -0.5f, random));
    }
    for (size_t k : {127u, 128u, 129u, 1000u, 4099u}) checker.Dynamic(Uniform(k, -1.0f, 1.0f, random));
  });
}

TEST(TiesGoToEven) {
  ForEachQuantize([](const QuantizeKernel& kernel) {
    Checker checker{kernel};
    std::vector<float> halves;
    for (int i = -300; i <= 600; ++i) halves.push_back(static_cast<float>(i) * 0.5f);
    for (int32_t zero_point : {0, 1, 77, 128, 254, 255}) {
      checker.RowIs(halves, 1.0f, zero_point);
      checker.RowIs(halves, 0.5f, zero_point);
    }
  });
}

TEST(ZerosOfBothSigns) {
  ForEachQuantize([](const QuantizeKernel& kernel) {
    Checker checker{kernel};
    for (size_t k : {1u, 8u, 33u}) {
      checker.Dynamic(std::vector<float>(k, 0.0f));
      checker.Dynamic(std::vector<float>(k, -0.0f));
    }
  });
}

TEST(RangeSeesTheExtremeAtEveryPosition) {
  ForEachQuantize([](const QuantizeKernel& kernel) {
    Checker checker{kernel};
    for (size_t k : {1u, 7u, 16u, 31u, 70u, 131u})
      for (size_t at = 0; at < k; ++at)
        for (float v : {9.0f, -9.0f, std::nanf(""), kInf, -kInf, -std::nanf("")}) {
          std::vector<float> x(k, 0.25f);
          x[at] = v;
          checker.RangeIs(x);
        }
  });
}

TEST(HugeAndTinyRanges) {
  ForEachQuantize([](const QuantizeKernel& kernel) {
    Checker checker{kernel};
    Random random(2);
    for (float size : {3e38f, FLT_MAX, 1e-30f, FLT_MIN, 1e-40f, FLT_TRUE_MIN})
      for (size_t k : {5u, 16u, 67u}) {
        std::vector<float> x = Uniform(k, -1.0f, 1.0f, random);
        for (float& v : x) v *= size;
        x[0] = size;
        x[k - 1] = -size;
        checker.Dynamic(x);
        x[k - 1] = 0.0f;
        checker.Dynamic(x);
      }
  });
}

// Static mode: values far outside of the range, up to a product that is infinite.
TEST(ValuesOutsideTheRangeSaturate) {
  ForEachQuantize([](const QuantizeKernel& kernel) {
    Checker checker{kernel};
    std::vector<float> x = {FLT_MAX, -FLT_MAX, 1e10f, -1e10f, 3e9f, -3e9f, 255.5f, -255.5f, 1.0f, -1.0f, 0.0f};
    for (int i = 0; i < 30; ++i) x.push_back(x[static_cast<size_t>(i)]);
    for (float inv_scale : {1.0f, 1e30f, 1.0f / FLT_MIN, 1.0f / FLT_MAX})
      for (int32_t zero_point : {0, 3, 128, 255}) checker.RowIs(x, inv_scale, zero_point);
  });
}

TEST(ChosenParametersFollowTheDefinition) {
  Random random(3);
  for (int i = 0; i < 100000; ++i) {
    const float lo = -tersor::testing::FloatOf(static_cast<uint32_t>(random.Bits()) & 0x7f7fffffu);
    const float hi = tersor::testing::FloatOf(static_cast<uint32_t>(random.Bits()) & 0x7f7fffffu);
    const float range[2] = {random.Int(0, 9) == 0 ? 0.0f : lo, random.Int(0, 9) == 0 ? 0.0f : hi};
    const tersor::RowParams got = tersor::ChooseRowParams(range);
    const RowQuantization want = ChooseRow(range[0], range[1]);
    CHECK_OR(got.scale == want.scale && got.inv_scale == want.inv_scale && got.zero_point == want.zero_point,
             "range [%a, %a]", static_cast<double>(range[0]), static_cast<double>(range[1]));
    CHECK(std::isnormal(got.scale) && got.zero_point >= 0 && got.zero_point <= 255);
  }
}

TEST(FrontEndQuantizesStridedRows) {
  for (const std::string& isa : tersor::AvailableIsas()) {
    tersor::SetIsaCap(isa);
    Random random(4);
    const int64_t m = 5, k = 37, ldx = 41;
    std::vector<float> x = Uniform(static_cast<size_t>(m * ldx), -2.0f, 3.0f, random);
    x[2 * ldx + 11] = kInf;
    std::vector<uint8_t> q(static_cast<size_t>(m * k), 1);
    std::vector<float> scale(m);
    std::vector<int32_t> zero(m), sum(m);
    tersor::QuantizeRows(m, k, x.data(), ldx, q.data(), scale.data(), zero.data(), sum.data());
    for (int64_t i = 0; i < m; ++i) {
      const std::vector<float> row(x.begin() + i * ldx, x.begin() + i * ldx + k);
      const RowQuantization want = ChooseRow(RangeOf(row).lo, RangeOf(row).hi);
      const size_t at = static_cast<size_t>(i);
      CHECK(Same(scale[at], want.scale) && zero[at] == want.zero_point && std::isnan(scale[at]) == (i == 2));
      int32_t want_sum = 0;
      for (size_t p = 0; p < row.size(); ++p) {
        const int32_t want_q = i == 2 ? 0 : QuantizeOne(row[p], want.inv_scale, want.zero_point);
        CHECK(q[at * row.size() + p] == want_q);
        want_sum += want_q;
      }
      CHECK(sum[at] == want_sum);
    }
    tersor::QuantizeRows(m, k, x.data(), ldx, q.data(), scale.data(), zero.data(), nullptr);
    tersor::SetIsaCap("");
  }
}

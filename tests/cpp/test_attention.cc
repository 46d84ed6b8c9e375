// All instruction sets give the same bits, and those are as near to attention in double precision as derived.
#include <string>

#include "attention_cases.h"
#include "check.h"

namespace {

using tersor::AttentionKernel;
using tersor::testing::AttentionCase;
using tersor::testing::BitsOf;
using tersor::testing::ExactAttention;
using tersor::testing::FloatOf;
using tersor::testing::Quick;
using tersor::testing::Random;
using tersor::testing::SameFloat;

const AttentionKernel& Scalar() { return *tersor::RunnableKernelSets().front()->attention; }

template <typename Body>
void ForEach(Body body) {
  for (const tersor::KernelSet* set : tersor::RunnableKernelSets())
    if (set->attention != nullptr) body(*set->attention);
}

void CheckCase(const AttentionCase& c) {
  const std::vector<float> want = Attend(Scalar(), c);
  const ExactAttention exact(c);
  for (size_t i = 0; i < want.size(); ++i)
    CHECK_OR(std::fabs(static_cast<double>(want[i]) - exact.out[i]) <= exact.bound[i],
             "rows %d keys %d depth %d at %zu: %a, exactly %a, bound %a", c.rows, c.keys, c.depth, i,
             static_cast<double>(want[i]), exact.out[i], exact.bound[i]);
  ForEach([&](const AttentionKernel& kernel) {
    const std::vector<float> got = Attend(kernel, c);
    for (size_t i = 0; i < want.size(); ++i)
      CHECK_OR(SameFloat(got[i], want[i]), "%s rows %d keys %d depth %d at %zu: %a, scalar %a", kernel.id, c.rows,
               c.keys, c.depth, i, static_cast<double>(got[i]), static_cast<double>(want[i]));
  });
}

}  // namespace

TEST(AnyDepthAndNumberOfKeys) {
  uint64_t seed = 1;
  for (const int32_t depth : {16, 24, 25, 32, 40, 64, 80, 128})
    for (const int32_t keys : {1, 2, 15, 17, 64, 100, 128, 129, 300}) {
      if (Quick() && (depth + keys) % 3 != 0) continue;
      CheckCase(AttentionCase(7, keys, depth, seed, seed % 3 == 0));
      ++seed;
    }
  CheckCase(AttentionCase(3, 511, 32, 99));
  CheckCase(AttentionCase(2, 40, 300, 98));
  CheckCase(AttentionCase(1, 1, 1, 97));
}

TEST(AnyNumberOfRows) {
  for (int32_t rows = 1; rows <= 14; ++rows) CheckCase(AttentionCase(rows, 33, 32, static_cast<uint64_t>(rows)));
}

// The sums that come nearest to the ends of int32.
TEST(LargestOperands) {
  for (const int32_t depth : {128, 512}) {
    AttentionCase c(2, 128, depth, 5);
    c.q.assign(c.q.size(), 1.0f);
    c.k.assign(c.k.size(), -1.0f);
    c.v.assign(c.v.size(), 1.0f);
    CheckCase(c);
    c.v.assign(c.v.size(), -1.0f);
    CheckCase(c);
  }
}

// One score far above the others, in the first block, the last or between.
TEST(OneKeyWins) {
  for (const int32_t winner : {0, 127, 128, 299}) {
    AttentionCase c(3, 300, 32, 7);
    for (int32_t d = 0; d < 32; ++d) c.k[static_cast<size_t>(winner * 32 + d)] = 40.0f * c.q[static_cast<size_t>(d)];
    CheckCase(c);
  }
}

TEST(NotFinite) {
  for (const float bad : {NAN, INFINITY, -INFINITY})
    for (int which = 0; which < 3; ++which) {
      AttentionCase c(5, 150, 24, 8);
      (which == 0 ? c.q : which == 1 ? c.k : c.v)[3 * 24 + 5] = bad;
      ForEach([&](const AttentionKernel& kernel) {
        const std::vector<float> y = Attend(kernel, c);
        for (int32_t row = 0; row < 5; ++row)
          CHECK_OR(std::isnan(y[static_cast<size_t>(row * 24)]) == (which > 0 || row == 3),
                   "%s operand %d row %d is %g", kernel.id, which, row,
                   static_cast<double>(y[static_cast<size_t>(row * 24)]));
      });
    }
}

// Keys that a bias of -infinity takes away, even all of the first block, weigh nothing.
TEST(InfiniteBias) {
  AttentionCase c(4, 200, 32, 11, true);
  for (size_t j = 0; j < 200; ++j) {
    c.bias[j] = j < 130 ? -1e30f : c.bias[j];
    c.bias[200 + j] = j % 2 == 0 ? -1e30f : c.bias[200 + j];
    c.bias[400 + j] = j > 0 ? -1e30f : c.bias[400 + j];
  }
  const std::vector<float> want = Attend(Scalar(), c);
  for (float& b : c.bias) b = b == -1e30f ? -INFINITY : b;
  ForEach([&](const AttentionKernel& kernel) { CHECK(Attend(kernel, c) == want); });
}

TEST(RowsOfInt16) {
  Random random(9);
  for (const int64_t n : {1, 7, 15, 16, 17, 31, 96, 384}) {
    std::vector<float> x;
    for (int64_t i = 0; i < n; ++i) x.push_back(random.Uniform(-5.0f, 4.0f));
    std::vector<int16_t> want(static_cast<size_t>(n));
    const float scale = Scalar().quantize_row(n, x.data(), 4095, want.data());
    for (size_t i = 0; i < want.size(); ++i) {
      CHECK(std::abs(want[i]) <= 4095);
      CHECK(std::fabs(x[i] - scale * static_cast<float>(want[i])) <= scale * 0.5005f);
    }
    ForEach([&](const AttentionKernel& kernel) {
      std::vector<int16_t> got(static_cast<size_t>(n));
      CHECK(BitsOf(kernel.quantize_row(n, x.data(), 4095, got.data())) == BitsOf(scale));
      CHECK(got == want);
    });
  }
  ForEach([](const AttentionKernel& kernel) {
    const std::vector<float> tiny(20, 1e-44f), zero(20, 0.0f);
    std::vector<int16_t> q(20, 9);
    CHECK(kernel.quantize_row(20, zero.data(), 4095, q.data()) > 0.0f && q == std::vector<int16_t>(20, 0));
    CHECK(kernel.quantize_row(20, tiny.data(), 4095, q.data()) > 0.0f && q == std::vector<int16_t>(20, 0));
  });
}

// Over every 97th float of [-125, -2^-20], and a few below.
TEST(PowersOfTwo) {
  std::vector<float> x = {-0.0f, 0.0f, -0x1p-149f, -0x1p-30f};
  const uint32_t step = Quick() ? 100003 : 97;
  for (uint32_t bits = BitsOf(0x1p-20f); bits <= BitsOf(125.0f); bits += step) x.push_back(-FloatOf(bits));
  std::vector<float> want = x;
  Scalar().exp2(static_cast<int64_t>(x.size()), want.data());
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp2(static_cast<double>(x[i]));
    worst = std::fmax(worst, std::fabs(static_cast<double>(want[i]) - exact) / std::ldexp(1.0, std::ilogb(exact) - 23));
  }
  CHECK_OR(worst <= 1.78, "2^x is %.3f units in the last place off", worst);
  ForEach([&](const AttentionKernel& kernel) {
    std::vector<float> got = x;
    kernel.exp2(static_cast<int64_t>(x.size()), got.data());
    for (size_t i = 0; i < x.size(); ++i)
      CHECK_OR(SameFloat(got[i], want[i]), "%s: 2^%a is %a, scalar %a", kernel.id, static_cast<double>(x[i]),
               static_cast<double>(got[i]), static_cast<double>(want[i]));
    float limits[] = {-INFINITY, -1e30f, NAN, -126.0f};
    kernel.exp2(4, limits);
    CHECK(limits[0] == 0x1p-125f && limits[1] == 0x1p-125f && std::isnan(limits[2]) && limits[3] == 0x1p-125f);
  });
}

// LayerNorm: the same bits on every instruction set, and within a derived bound of double precision.
#include <cmath>
#include <vector>

#include "check.h"
#include "core/registry.h"
#include "data.h"

namespace {

using tersor::NormKernel;
using tersor::testing::Fenced;
using tersor::testing::Random;
using tersor::testing::SameFloat;

const NormKernel& Scalar() { return *tersor::RunnableKernelSets().front()->norm; }

struct Case {
  std::vector<float> x, gamma, beta;
  float eps;

  Case(int64_t n, float mean, float spread, float e, uint64_t seed) : eps(e) {
    Random random(seed);
    for (int64_t i = 0; i < n; ++i) {
      x.push_back(mean + random.Uniform(-spread, spread));
      gamma.push_back(random.Uniform(-2.0f, 2.0f));
      beta.push_back(random.Uniform(-1.0f, 1.0f));
    }
  }
};

std::vector<float> Run(const NormKernel& kernel, const Case& c) {
  Fenced x(1 << 16), gamma(1 << 16), beta(1 << 16);
  float* row = x.Copy(c.x);
  kernel.layer_norm(static_cast<int64_t>(c.x.size()), row, gamma.Copy(c.gamma), beta.Copy(c.beta), c.eps, row);
  CHECK(x.FrontIntact());
  return {row, row + c.x.size()};
}

// u: one rounding. A sum of 64 parts rounds n / 64 + 6 times, a quotient or a root once.
void CheckBound(const Case& c, const std::vector<float>& y) {
  const double u = 0x1p-24, n = static_cast<double>(c.x.size()), roundings = std::ceil(n / 64) + 8;
  double sum = 0, magnitude = 0, squares = 0, squares_error = 0;
  for (const float v : c.x) sum += static_cast<double>(v), magnitude += std::fabs(static_cast<double>(v));
  const double mean = sum / n, mean_error = roundings * u * magnitude / n + u * std::fabs(mean);
  for (const float v : c.x) {
    const double d = static_cast<double>(v) - mean, error = mean_error + u * std::fabs(d);
    squares += d * d;
    squares_error += 2 * std::fabs(d) * error + error * error;
  }
  const double variance = squares / n + static_cast<double>(c.eps);
  const double variance_error = (squares_error + roundings * u * squares) / n + 2 * u * variance;
  const double scale = 1 / std::sqrt(variance);
  const double scale_error = scale * (1 / std::sqrt(std::fmax(1 - variance_error / variance, 1e-9)) - 1 + 2 * u);
  for (size_t i = 0; i < y.size(); ++i) {
    const double d = static_cast<double>(c.x[i]) - mean, error = mean_error + u * std::fabs(d);
    const double g = static_cast<double>(c.gamma[i]), exact = d * scale * g + static_cast<double>(c.beta[i]);
    const double bound = std::fabs(g) * (error * (scale + scale_error) + std::fabs(d) * (scale_error + u * scale)) +
                         u * std::fabs(exact) + 1e-12;
    CHECK_OR(std::fabs(static_cast<double>(y[i]) - exact) <= 1.01 * bound, "n=%zu at %zu: %a, exactly %a, bound %a",
             y.size(), i, static_cast<double>(y[i]), exact, bound);
  }
}

}  // namespace

TEST(EveryLength) {
  std::vector<int64_t> lengths = {384, 512, 768, 1000, 1024};
  for (int64_t n = 1; n <= 130; ++n) lengths.push_back(n);
  for (const int64_t n : lengths)
    for (const float mean : {0.0f, 3.0f}) {
      const Case c(n, mean, 2.0f, 1e-5f, static_cast<uint64_t>(n));
      const std::vector<float> want = Run(Scalar(), c);
      CheckBound(c, want);
      for (const tersor::KernelSet* set : tersor::RunnableKernelSets()) {
        if (set->norm == nullptr) continue;
        const std::vector<float> got = Run(*set->norm, c);
        for (size_t i = 0; i < got.size(); ++i)
          CHECK_OR(SameFloat(got[i], want[i]), "%s n=%d at %zu: %a, scalar %a", set->norm->id, static_cast<int>(n), i,
                   static_cast<double>(got[i]), static_cast<double>(want[i]));
      }
    }
}

TEST(NanAndInfinity) {
  for (const tersor::KernelSet* set : tersor::RunnableKernelSets()) {
    if (set->norm == nullptr) continue;
    for (const float bad : {NAN, INFINITY}) {
      Case c(70, 0.0f, 1.0f, 1e-5f, 3);
      c.x[66] = bad;
      for (const float v : Run(*set->norm, c)) CHECK(std::isnan(v));
    }
  }
}

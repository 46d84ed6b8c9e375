// gelu for what is quantised to 8 bits next: the same bits on every instruction set, and within its bound.
#include <cmath>
#include <vector>

#include "check.h"
#include "core/registry.h"
#include "data.h"

namespace {

using tersor::Activation;
using tersor::ActivationKernel;
using tersor::testing::FloatOf;
using tersor::testing::Quick;
using tersor::testing::SameFloat;

const ActivationKernel& Scalar() { return *tersor::RunnableKernelSets().front()->activation_near; }

// Evenly over [-12, 12], and every binade down to the smallest.
std::vector<float> Sample() {
  std::vector<float> x;
  const int count = Quick() ? 20000 : 1000000;
  for (int i = 0; i <= count; ++i) x.push_back(-12.0f + 24.0f * static_cast<float>(i) / static_cast<float>(count));
  for (uint32_t bits = 0; bits < 0x7f800000u; bits += Quick() ? 10000019u : 100003u) {
    x.push_back(FloatOf(bits));
    x.push_back(-x.back());
  }
  return x;
}

double Exact(Activation activation, double x) {
  if (activation == Activation::kGelu) return 0.5 * x * std::erfc(-x * std::sqrt(0.5));
  return x / (1 + std::exp(-2 * std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

}  // namespace

TEST(GeluWithinItsBoundOnEverySet) {
  for (const Activation activation : {Activation::kGelu, Activation::kGeluTanh}) {
    const std::vector<float> x = Sample();
    std::vector<float> want = x;
    Scalar().apply(activation, static_cast<int64_t>(x.size()), want.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const double v = static_cast<double>(x[i]), bound = 1.1e-5 * std::fabs(v) + 0x1p-149;
      CHECK_OR(std::fabs(static_cast<double>(want[i]) - Exact(activation, v)) <= bound, "activation %d of %a is %a",
               static_cast<int>(activation), v, static_cast<double>(want[i]));
    }
    for (const tersor::KernelSet* set : tersor::RunnableKernelSets()) {
      if (set->activation_near == nullptr) continue;
      std::vector<float> got = x;
      set->activation_near->apply(activation, static_cast<int64_t>(x.size()), got.data());
      for (size_t i = 0; i < x.size(); ++i)
        CHECK_OR(SameFloat(got[i], want[i]), "%s activation %d of %a is %a, scalar %a", set->activation_near->id,
                 static_cast<int>(activation), static_cast<double>(x[i]), static_cast<double>(got[i]),
                 static_cast<double>(want[i]));
    }
  }
}

TEST(LimitsAndTheOthers) {
  for (const tersor::KernelSet* set : tersor::RunnableKernelSets()) {
    if (set->activation_near == nullptr) continue;
    for (const Activation activation : {Activation::kGelu, Activation::kGeluTanh}) {
      float x[] = {NAN, INFINITY, -INFINITY};
      set->activation_near->apply(activation, 3, x);
      CHECK(std::isnan(x[0]) && x[1] == INFINITY && std::fabs(x[2]) < 1e-4f);
    }
    for (const Activation activation : {Activation::kNone, Activation::kRelu, Activation::kSilu}) {
      std::vector<float> near = {-3.0f, -0.1f, 0.0f, 2.5f, 40.0f}, exact = near;
      set->activation_near->apply(activation, 5, near.data());
      tersor::RunnableKernelSets().front()->activation->apply(activation, 5, exact.data());
      CHECK(near == exact);
    }
  }
}

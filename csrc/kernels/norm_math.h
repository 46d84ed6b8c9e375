// LayerNorm over a vector type of floats. Every instruction set gives the same bits: sums are kept in 64 partial sums,
// element i in sum i % 64, and those are added in one order.
//
// Included only by kernels/<isa>/norm.cc. V: the lanes.h of the instruction set, and Sum16 (attention_tile.h).
#pragma once
#include <cmath>
#include <cstring>

#include "kernels/kernel_api.h"

#define TERSOR_UNROLL _Pragma("GCC unroll 64")

namespace {

template <typename V>
struct Norm {
  using F = typename V::F;
  static constexpr int32_t kLanes = static_cast<int32_t>(V::kLanes), kParts = 16 / kLanes, kVectors = 64 / kLanes;

  // The sum of term(x) over the row; what a padded element adds must be 0.
  template <typename Term>
  [[gnu::always_inline]] static float Sum(int64_t n, const float* x, float padding, Term term) {
    F sums[kVectors];
    TERSOR_UNROLL
    for (int v = 0; v < kVectors; ++v) sums[v] = V::Set(0.0f);
    const auto add = [&](const float* from) {
      TERSOR_UNROLL
      for (int v = 0; v < kVectors; ++v) sums[v] = term(sums[v], V::Load(from + v * kLanes));
    };
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) add(x + i);
    if (i < n) {
      float rest[64];
      for (float& value : rest) value = padding;
      std::memcpy(rest, x + i, static_cast<size_t>(n - i) * sizeof(float));
      add(rest);
    }
    TERSOR_UNROLL
    for (int v = 0; v < kVectors / 2; ++v) sums[v] = V::Add(sums[v], sums[v + kVectors / 2]);
    TERSOR_UNROLL
    for (int v = 0; v < kParts; ++v) sums[v] = V::Add(sums[v], sums[v + kParts]);
    return V::Sum16(sums);
  }

  static void LayerNorm(int64_t n, const float* x, const float* gamma, const float* beta, float eps, float* y) {
    const float count = static_cast<float>(n);
    const float mean = Sum(n, x, 0.0f, [](F sum, F v) { return V::Add(sum, v); }) / count;
    const F center = V::Set(mean);
    const float squares = Sum(n, x, mean, [&](F sum, F v) {
      const F d = V::Sub(v, center);
      return V::Fma(d, d, sum);
    });
    const F scale = V::Set(1.0f / std::sqrt(squares / count + eps));
    const auto apply = [&](const float* from, const float* g, const float* b, float* to) {
      const F d = V::Mul(V::Sub(V::Load(from), center), scale);
      V::Store(to, V::Fma(d, V::Load(g), V::Load(b)));
    };
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) apply(x + i, gamma + i, beta + i, y + i);
    if (i == n) return;
    float rest[3][kLanes] = {};
    const size_t bytes = static_cast<size_t>(n - i) * sizeof(float);
    std::memcpy(rest[0], x + i, bytes);
    std::memcpy(rest[1], gamma + i, bytes);
    std::memcpy(rest[2], beta + i, bytes);
    apply(rest[0], rest[1], rest[2], rest[0]);
    std::memcpy(y + i, rest[0], bytes);
  }

  static constexpr tersor::NormKernel Kernel(const char* id) { return {id, LayerNorm}; }
};

}  // namespace

#undef TERSOR_UNROLL

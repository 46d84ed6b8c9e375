// The definition of the float low-rank product; every kernel equals it bit for bit. The int8 one is two calls of
// linear_s8 (linear_s8_ref.h): h = x V without a bias, y = h U + bias, h quantised row by row as x is; with a dense
// weight beside the factors, y is the residual of linear_s8 of x and that weight.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

namespace tersor::reference {

// One chain of fused multiply-adds per output in ascending k, from `begin` on (null: 0).
inline void GemmF32(int64_t m, int64_t n, int64_t k, const float* a, const float* w, const float* begin, float* c) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      float sum = begin == nullptr ? 0.0f : begin[j];
      for (int64_t p = 0; p < k; ++p) sum = std::fma(a[i * k + p], w[j * k + p], sum);
      c[i * n + j] = sum;
    }
}

inline void LowRankF32(int64_t m, int64_t n, int64_t k, int64_t rank, const float* x, const float* down,
                       const float* up, const float* bias, const float* residual, float* y) {
  std::vector<float> h(static_cast<size_t>(m * rank));
  GemmF32(m, rank, k, x, down, nullptr, h.data());
  GemmF32(m, n, rank, h.data(), up, bias, y);
  for (int64_t i = 0; residual != nullptr && i < m * n; ++i) y[i] += residual[i];
}

}  // namespace tersor::reference

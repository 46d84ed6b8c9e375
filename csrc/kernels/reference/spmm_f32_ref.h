// The definition of the sparse float product. Read this first; every kernel equals it bit for bit.
#pragma once
#include <cmath>
#include <cstdint>

namespace tersor::reference {

// One chain of fused multiply-adds per output, over the non-zeros of the weight row in ascending k, from the bias on.
inline void SpmmF32(int64_t m, int64_t n, int64_t k, const float* x, const float* w, const float* bias,
                    const float* residual, float* y) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      float sum = bias == nullptr ? 0.0f : bias[j];
      for (int64_t p = 0; p < k; ++p)
        if (w[j * k + p] != 0.0f) sum = std::fma(x[i * k + p], w[j * k + p], sum);
      y[i * n + j] = residual == nullptr ? sum : sum + residual[i * n + j];
    }
}

}  // namespace tersor::reference

// The definitions. Read this first; every kernel equals it: the integers bit for bit on every ISA, the floats too.
#pragma once
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace tersor::reference {

struct RowQuantization {
  float scale, inv_scale;
  int32_t zero_point;
};

// The range of a row always holds 0, so that 0 is exact. A row that holds NaN or infinity has scale NaN.
inline RowQuantization ChooseRow(float lo, float hi) {
  if (std::isnan(lo) || std::isnan(hi)) return {std::numeric_limits<float>::quiet_NaN(), 0.0f, 0};
  const float scale = std::max(hi / 255.0f - lo / 255.0f, FLT_MIN);
  const float inv_scale = 1.0f / scale;
  const float zero = std::nearbyintf(-lo * inv_scale);
  return {scale, inv_scale, static_cast<int32_t>(std::min(std::max(zero, 0.0f), 255.0f))};
}

inline uint8_t QuantizeOne(float x, float inv_scale, int32_t zero_point) {
  const float t =
      std::min(std::max(x * inv_scale, static_cast<float>(-zero_point)), static_cast<float>(255 - zero_point));
  return static_cast<uint8_t>(static_cast<int32_t>(std::nearbyintf(t)) + zero_point);
}

// c[m][n] = sum over k of a[m][k] * w[n][k]
inline void GemmS8(int64_t m, int64_t n, int64_t k, const uint8_t* a, int64_t lda, const int8_t* w, int32_t* c,
                   int64_t ldc) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      int32_t acc = 0;
      for (int64_t p = 0; p < k; ++p) acc += int32_t{a[i * lda + p]} * int32_t{w[j * k + p]};
      c[i * ldc + j] = acc;
    }
}

inline float Epilogue(int32_t acc, int32_t zero_point, int32_t col_sum, float row_scale, float col_scale, float bias) {
  const float t = static_cast<float>(acc - zero_point * col_sum);
  const float scaled = t * (row_scale * col_scale);
  return scaled + bias;
}

}  // namespace tersor::reference

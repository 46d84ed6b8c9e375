// The definition of a product with code book weights: the parts of k, each with a scale of its own, in their order.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/reference/linear_s8_ref.h"

namespace tersor::reference {

// One output before the activation. a [k], values int8 [k]: the table's entry of each code; scale: of each part of
// `depth` values of k. residual may be null.
inline float LinearLut4(int64_t k, int64_t depth, const uint8_t* a, const int8_t* values, int32_t zero_point,
                        float row_scale, const float* scale, float bias, const float* residual) {
  float y = 0.0f;
  for (int64_t begin = 0, part = 0; begin < k; begin += depth, ++part) {
    int32_t acc = 0, col_sum = 0;
    for (int64_t p = begin; p < std::min(begin + depth, k); ++p) {
      acc += int32_t{a[p]} * int32_t{values[p]};
      col_sum += values[p];
    }
    const float term = Epilogue(acc, zero_point, col_sum, row_scale, scale[part], part == 0 ? bias : 0.0f);
    if (part > 0)
      y = term + y;
    else
      y = residual == nullptr ? term : term + *residual;
  }
  return y;
}

}  // namespace tersor::reference

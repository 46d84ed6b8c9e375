// One value at a time: the definition of kernels/reference/linear_s8_ref.h.
#include <cmath>
#include <limits>

#include "kernels/kernel_api.h"

namespace tersor::scalar {
namespace {

void RowRange(int64_t k, const float* x, float* range) {
  float lo = 0.0f, hi = 0.0f;
  bool finite = true;
  for (int64_t i = 0; i < k; ++i) {
    finite = finite && std::isfinite(x[i]);
    lo = x[i] < lo ? x[i] : lo;
    hi = x[i] > hi ? x[i] : hi;
  }
  range[0] = finite ? lo : std::numeric_limits<float>::quiet_NaN();
  range[1] = finite ? hi : std::numeric_limits<float>::quiet_NaN();
}

int32_t QuantizeRow(int64_t k, const float* x, float inv_scale, int32_t zero_point, uint8_t* q) {
  const float lo = static_cast<float>(-zero_point), hi = static_cast<float>(255 - zero_point);
  int32_t sum = 0;
  for (int64_t i = 0; i < k; ++i) {
    float t = x[i] * inv_scale;
    t = t > lo ? t : lo;
    t = t < hi ? t : hi;
    const int32_t v = static_cast<int32_t>(std::nearbyintf(t)) + zero_point;
    q[i] = static_cast<uint8_t>(v);
    sum += v;
  }
  return sum;
}

}  // namespace

const QuantizeKernel& Quantize() {
  static constexpr QuantizeKernel kernel = {"quantize_scalar", RowRange, QuantizeRow};
  return kernel;
}

}  // namespace tersor::scalar

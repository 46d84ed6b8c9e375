#include "ops/quantize_rows.h"

#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/registry.h"
#include "tersor/linear_s8.h"

namespace tersor {

RowParams ChooseRowParams(const float* range) {
  const float lo = range[0], hi = range[1];
  if (std::isnan(lo)) return {std::numeric_limits<float>::quiet_NaN(), 0.0f, 0};
  const float width = hi / 255.0f - lo / 255.0f;
  const float scale = width > FLT_MIN ? width : FLT_MIN;
  const float inv_scale = 1.0f / scale;
  const float zero = std::nearbyintf(-lo * inv_scale);
  return {scale, inv_scale, zero > 255.0f ? 255 : static_cast<int32_t>(zero)};
}

int32_t QuantizeRow(const QuantizeKernel& kernel, int64_t k, int64_t k_pad, const float* x, const RowParams& params,
                    uint8_t* q) {
  if (k_pad > k) std::memset(q + k, 0, static_cast<size_t>(k_pad - k));
  if (std::isnan(params.scale)) {  // the row's results are NaN; its integers are fixed all the same
    std::memset(q, 0, static_cast<size_t>(k));
    return 0;
  }
  return kernel.quantize_row(k, x, params.inv_scale, params.zero_point, q);
}

void QuantizeRows(int64_t m, int64_t k, const float* x, int64_t ldx, uint8_t* q, float* scale, int32_t* zero_point,
                  int32_t* row_sum) {
  const QuantizeKernel& kernel = *Selected().quantize;
  for (int64_t i = 0; i < m; ++i) {
    float range[2];
    kernel.row_range(k, x + i * ldx, range);
    const RowParams params = ChooseRowParams(range);
    const int32_t sum = QuantizeRow(kernel, k, k, x + i * ldx, params, q + i * k);
    scale[i] = params.scale;
    zero_point[i] = params.zero_point;
    if (row_sum != nullptr) row_sum[i] = sum;
  }
}

}  // namespace tersor

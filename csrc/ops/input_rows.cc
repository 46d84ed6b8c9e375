#include "ops/input_rows.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace tersor {

void CheckLinearArgs(const char* op, const LinearS8Args& args, int64_t n) {
  CheckRows(op, args, n);
  const auto fail = [op](const std::string& what) { throw Error(std::string(op) + ": " + what); };
  if (!(args.x_scale >= 0.0f) || !std::isfinite(args.x_scale))
    fail("x_scale=" + std::to_string(args.x_scale) + "; it is 0 (dynamic) or a finite positive scale");
  if (args.x_scale > 0.0f && !std::isnormal(args.x_scale)) fail("x_scale is subnormal");
  if (args.x_zero_point < 0 || args.x_zero_point > 255)
    fail("x_zero_point=" + std::to_string(args.x_zero_point) + " is outside [0, 255]");
}

const void* InputRows::Source(int64_t row) const {
  return static_cast<const char*>(args.x) + static_cast<size_t>(row * args.ldx) * ElementBytes(args.dtype);
}

RowParams InputRows::ParamsOf(const float* x) const {
  float range[2];
  kernels.quantize->row_range(k, x, range);
  if (args.x_scale > 0.0f && !std::isnan(range[0])) return {args.x_scale, 1.0f / args.x_scale, args.x_zero_point};
  return ChooseRowParams(range);
}

void InputRows::QuantizeInto(const QuantizedRows& to, int64_t i, const float* x, const RowParams& params) const {
  QuantizeRow(*kernels.quantize, k, to.k_pad, x, params, to.q + i * to.lda);
  to.scale[i] = params.scale;
  to.zero_point[i] = params.zero_point;
}

void InputRows::Quantize(Range rows, const QuantizedRows& to, float* row_f32) const {
  if (rewrites()) {
    const ConvertKernel& convert = *kernels.convert;
    for (int64_t i = 0; i < rows.count(); ++i) {
      const float* x = static_cast<const float*>(Source(rows.begin + i));
      if (args.dtype != DType::kF32) {
        convert.to_f32(args.dtype, k, x, row_f32);
        x = row_f32;
      }
      if (input_scale != nullptr) convert.multiply(k, x, input_scale, row_f32);
      QuantizeInto(to, i, row_f32, ParamsOf(row_f32));
    }
    return;
  }
  // The ranges of several rows first: the divisions of one row then overlap with the reading of the next.
  constexpr int64_t kGroup = 4;
  for (int64_t begin = 0; begin < rows.count(); begin += kGroup) {
    RowParams params[kGroup];
    const int64_t live = std::min(kGroup, rows.count() - begin);
    const auto row = [&](int64_t i) { return static_cast<const float*>(Source(rows.begin + begin + i)); };
    for (int64_t i = 0; i < live; ++i) params[i] = ParamsOf(row(i));
    for (int64_t i = 0; i < live; ++i) QuantizeInto(to, begin + i, row(i), params[i]);
  }
}

}  // namespace tersor

// bf16 and fp16 by definition: a value is sign * mantissa * 2^exponent, and rounding picks the nearest
// representable value, the even one of two. Slow, in double precision, independent of the kernels.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "data.h"
#include "tersor/types.h"

namespace tersor::testing {

struct HalfFormat {
  int mantissa_bits, min_exponent, max_exponent;  // exponents of the leading bit of normal numbers
};
constexpr HalfFormat kBf16Format = {7, -126, 127}, kF16Format = {10, -14, 15};
inline const HalfFormat& FormatOf(DType dtype) { return dtype == DType::kBf16 ? kBf16Format : kF16Format; }

inline float HalfToFloat(DType dtype, uint16_t half) {
  const HalfFormat& f = FormatOf(dtype);
  const int exponent_bits = 15 - f.mantissa_bits;
  const int mantissa = half & ((1 << f.mantissa_bits) - 1);
  const int biased = half >> f.mantissa_bits & ((1 << exponent_bits) - 1);
  const double sign = half >> 15 != 0 ? -1.0 : 1.0;
  if (biased == (1 << exponent_bits) - 1)
    return static_cast<float>(mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity());
  const int leading = biased == 0 ? 0 : 1 << f.mantissa_bits;
  const int exponent = biased == 0 ? f.min_exponent : f.min_exponent + biased - 1;
  return static_cast<float>(sign * std::ldexp(leading + mantissa, exponent - f.mantissa_bits));
}

inline uint16_t FloatToHalf(DType dtype, float x) {  // x is not NaN
  const HalfFormat& f = FormatOf(dtype);
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const uint16_t infinity = static_cast<uint16_t>(0x7fff >> f.mantissa_bits << f.mantissa_bits);
  const double magnitude = std::fabs(static_cast<double>(x));
  if (std::isinf(x)) return sign | infinity;
  int exponent = f.min_exponent;
  if (magnitude > 0.0) exponent = std::max(exponent, std::ilogb(magnitude));
  // How many units of the last place; the current rounding mode is to nearest even.
  const double units = std::nearbyint(std::ldexp(magnitude, f.mantissa_bits - exponent));
  if (std::ldexp(units, exponent - f.mantissa_bits) >= std::ldexp(2.0, f.max_exponent)) return sign | infinity;
  // Units carry the leading bit of a normal number, and a carry out of the mantissa, into the exponent field.
  const int64_t code =
      (static_cast<int64_t>(exponent - f.min_exponent) << f.mantissa_bits) + static_cast<int64_t>(units);
  return static_cast<uint16_t>(sign | code);
}

}  // namespace tersor::testing

// bf16 and fp16 by bit arithmetic.
#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::scalar {
namespace {

uint32_t Bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}

float FromBits(uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

float FromBf16(uint16_t h) { return FromBits(uint32_t{h} << 16); }

uint16_t ToBf16(float x) {
  const uint32_t u = Bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(u >> 16 | 0x40u);  // NaN stays NaN
  return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

float FromF16(uint16_t h) {
  const uint32_t sign = uint32_t{h & 0x8000u} << 16, exponent = h >> 10 & 31u, mantissa = h & 0x3ffu;
  if (exponent == 31) return FromBits(sign | 0x7f800000u | mantissa << 13 | (mantissa != 0 ? 0x400000u : 0u));
  if (exponent != 0) return FromBits(sign | (exponent + 112) << 23 | mantissa << 13);
  const float subnormal = static_cast<float>(mantissa) * 0x1p-24f;
  return FromBits(sign | Bits(subnormal));
}

uint16_t ToF16(float x) {
  const uint32_t u = Bits(x), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {  // below the smallest normal: adding 0.5 aligns the subnormal's bits and rounds
    const uint32_t aligned = Bits(FromBits(magnitude) + 0.5f);
    return static_cast<uint16_t>(sign | (aligned - 0x3f000000u));
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

void ToF32(DType from, int64_t n, const void* src, float* dst) {
  if (from == DType::kF32) {
    std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  const uint16_t* in = static_cast<const uint16_t*>(src);
  for (int64_t i = 0; i < n; ++i) dst[i] = from == DType::kBf16 ? FromBf16(in[i]) : FromF16(in[i]);
}

void FromF32(DType to, int64_t n, const float* src, void* dst) {
  if (to == DType::kF32) {
    std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(dst);
  for (int64_t i = 0; i < n; ++i) out[i] = to == DType::kBf16 ? ToBf16(src[i]) : ToF16(src[i]);
}

#include "kernels/multiply.h"

}  // namespace

const ConvertKernel& Convert() {
  static constexpr ConvertKernel kernel = {"convert_scalar", ToF32, FromF32, Multiply};
  return kernel;
}

}  // namespace tersor::scalar

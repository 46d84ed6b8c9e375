// fp16 by the conversion instructions, bf16 by integer arithmetic; 4 values at a time, the last ones in a padded
// copy.
#include <arm_neon.h>

#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::neon_dotprod {
namespace {

float32x4_t FromBf16(uint16x4_t h) { return vreinterpretq_f32_u32(vshll_n_u16(h, 16)); }
float32x4_t FromF16(uint16x4_t h) { return vcvt_f32_f16(vreinterpret_f16_u16(h)); }

uint16x4_t ToF16(float32x4_t x) { return vreinterpret_u16_f16(vcvt_f16_f32(x)); }

uint16x4_t ToBf16(float32x4_t x) {
  const uint32x4_t u = vreinterpretq_u32_f32(x);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(vaddq_u32(u, vdupq_n_u32(0x7fff)), odd);
  const uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), rounded, quiet), 16);
}

template <float32x4_t (*kWiden)(uint16x4_t)>
void Widen(int64_t n, const uint16_t* src, float* dst) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) vst1q_f32(dst + i, kWiden(vld1_u16(src + i)));
  if (i == n) return;
  uint16_t rest[4] = {};
  float wide[4];
  std::memcpy(rest, src + i, static_cast<size_t>(n - i) * sizeof(uint16_t));
  vst1q_f32(wide, kWiden(vld1_u16(rest)));
  std::memcpy(dst + i, wide, static_cast<size_t>(n - i) * sizeof(float));
}

template <uint16x4_t (*kNarrow)(float32x4_t)>
void Narrow(int64_t n, const float* src, uint16_t* dst) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) vst1_u16(dst + i, kNarrow(vld1q_f32(src + i)));
  if (i == n) return;
  float rest[4] = {};
  uint16_t narrow[4];
  std::memcpy(rest, src + i, static_cast<size_t>(n - i) * sizeof(float));
  vst1_u16(narrow, kNarrow(vld1q_f32(rest)));
  std::memcpy(dst + i, narrow, static_cast<size_t>(n - i) * sizeof(uint16_t));
}

void ToF32(DType from, int64_t n, const void* src, float* dst) {
  const uint16_t* halves = static_cast<const uint16_t*>(src);
  switch (from) {
    case DType::kF32:
      std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
      return;
    case DType::kBf16:
      return Widen<FromBf16>(n, halves, dst);
    case DType::kF16:
      return Widen<FromF16>(n, halves, dst);
  }
}

void FromF32(DType to, int64_t n, const float* src, void* dst) {
  uint16_t* halves = static_cast<uint16_t*>(dst);
  switch (to) {
    case DType::kF32:
      std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
      return;
    case DType::kBf16:
      return Narrow<ToBf16>(n, src, halves);
    case DType::kF16:
      return Narrow<ToF16>(n, src, halves);
  }
}

#include "kernels/multiply.h"

}  // namespace

const ConvertKernel& Convert() {
  static constexpr ConvertKernel kernel = {"convert_neon_dotprod", ToF32, FromF32, Multiply};
  return kernel;
}

}  // namespace tersor::neon_dotprod

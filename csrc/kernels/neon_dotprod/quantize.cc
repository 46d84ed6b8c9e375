// 16 values at a time. Exact: each step rounds as the definition of kernels/reference/linear_s8_ref.h does, and
// fcvtns rounds to nearest, ties to even.
#include <arm_neon.h>

#include "kernels/kernel_api.h"

namespace tersor::neon_dotprod {
namespace {

constexpr uint32_t kMagnitude = 0x7fffffffu, kInfinity = 0x7f800000u;

uint32x4_t MagnitudeBits(float32x4_t x) { return vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(kMagnitude)); }

void RowRange(int64_t k, const float* x, float* range) {
  float32x4_t lo[2] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)}, hi[2] = {lo[0], lo[0]};
  uint32x4_t largest[2] = {vdupq_n_u32(0), vdupq_n_u32(0)};  // magnitudes order as integers, NaN above infinity
  int64_t i = 0;
  for (; i + 8 <= k; i += 8)
    for (int half = 0; half < 2; ++half) {
      const float32x4_t v = vld1q_f32(x + i + 4 * half);
      lo[half] = vminq_f32(lo[half], v);
      hi[half] = vmaxq_f32(hi[half], v);
      largest[half] = vmaxq_u32(largest[half], MagnitudeBits(v));
    }
  float low = vminvq_f32(vminq_f32(lo[0], lo[1])), high = vmaxvq_f32(vmaxq_f32(hi[0], hi[1]));
  bool finite = vmaxvq_u32(vmaxq_u32(largest[0], largest[1])) < kInfinity;
  for (; i < k; ++i) {
    finite = finite && __builtin_isfinite(x[i]);
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  range[0] = finite ? low : __builtin_nanf("");
  range[1] = finite ? high : __builtin_nanf("");
}

struct Step {
  float32x4_t lo, hi;
  int32x4_t zero_point;
  float inv_scale;

  int32x4_t Four(float32x4_t x) const {
    const float32x4_t t = vminq_f32(vmaxq_f32(vmulq_n_f32(x, inv_scale), lo), hi);
    return vaddq_s32(vcvtnq_s32_f32(t), zero_point);
  }
};

int32_t QuantizeRow(int64_t k, const float* x, float inv_scale, int32_t zero_point, uint8_t* q) {
  const Step step = {vdupq_n_f32(static_cast<float>(-zero_point)), vdupq_n_f32(static_cast<float>(255 - zero_point)),
                     vdupq_n_s32(zero_point), inv_scale};
  uint32x4_t sum = vdupq_n_u32(0);
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) {
    const int32x4_t a = step.Four(vld1q_f32(x + i)), b = step.Four(vld1q_f32(x + i + 4));
    const int32x4_t c = step.Four(vld1q_f32(x + i + 8)), d = step.Four(vld1q_f32(x + i + 12));
    const uint16x8_t ab = vreinterpretq_u16_s16(vuzp1q_s16(vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b)));
    const uint16x8_t cd = vreinterpretq_u16_s16(vuzp1q_s16(vreinterpretq_s16_s32(c), vreinterpretq_s16_s32(d)));
    const uint8x16_t bytes = vuzp1q_u8(vreinterpretq_u8_u16(ab), vreinterpretq_u8_u16(cd));
    vst1q_u8(q + i, bytes);
    sum = vdotq_u32(sum, bytes, vdupq_n_u8(1));
  }
  int32_t total = static_cast<int32_t>(vaddvq_u32(sum));
  for (; i < k; ++i) {
    const int32_t v = vgetq_lane_s32(step.Four(vdupq_n_f32(x[i])), 0);
    q[i] = static_cast<uint8_t>(v);
    total += v;
  }
  return total;
}

}  // namespace

const QuantizeKernel& Quantize() {
  static constexpr QuantizeKernel kernel = {"quantize_neon_dotprod", RowRange, QuantizeRow};
  return kernel;
}

}  // namespace tersor::neon_dotprod

// Four floats, as the vector of the shared algorithms.
//
// Included only by kernel files of this instruction set and of those above it: all of it is in their anonymous
// namespaces.
#pragma once
#include <arm_neon.h>

#include <cstdint>

namespace {

struct Lanes4 {
  using F = float32x4_t;
  static constexpr int64_t kLanes = 4;

  static F Load(const float* p) { return vld1q_f32(p); }
  static void Store(float* p, F v) { vst1q_f32(p, v); }
  static F Set(float v) { return vdupq_n_f32(v); }
  static F Add(F a, F b) { return vaddq_f32(a, b); }
  static F Sub(F a, F b) { return vsubq_f32(a, b); }
  static F Mul(F a, F b) { return vmulq_f32(a, b); }
  static F Div(F a, F b) { return vdivq_f32(a, b); }
  static F Fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F Fms(F a, F b, F c) { return vfmaq_f32(vnegq_f32(c), a, b); }
  // Not fmax and fmin: they give NaN when only one side is.
  static F Max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static F Min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static F Abs(F a) { return vabsq_f32(a); }
  static F IfNegative(F v, F a, F b) { return vbslq_f32(vcltzq_f32(v), a, b); }
  static F Scale(F x, F n) {
    const int32x4_t i = vcvtnq_s32_f32(n), half = vshrq_n_s32(i, 1);
    return Mul(Mul(x, Power(half)), Power(vsubq_s32(i, half)));
  }

 private:
  static F Power(int32x4_t n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23)); }
};

}  // namespace

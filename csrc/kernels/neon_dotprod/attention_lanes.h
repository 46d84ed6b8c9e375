// Four lanes of attention_tile.h and norm_math.h.
#pragma once
#include <cstring>

#include "kernels/neon_dotprod/lanes.h"
#include "kernels/neon_dotprod/transpose.h"

namespace {

struct Pairs4 : Lanes4 {
  struct I {
    int16x8_t pairs;
    int32x4_t sums;
  };

  static I Zero() { return {vdupq_n_s16(0), vdupq_n_s32(0)}; }
  static I Pair(const int16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return {vreinterpretq_s16_s32(vdupq_n_s32(pair)), vdupq_n_s32(0)};
  }
  static I Pairs(const int16_t* p) { return {vld1q_s16(p), vdupq_n_s32(0)}; }
  static I MulAdd(I acc, I a, I w) {
    const int32x4_t low = vmull_s16(vget_low_s16(a.pairs), vget_low_s16(w.pairs)),
                    high = vmull_high_s16(a.pairs, w.pairs);
    return {acc.pairs, vaddq_s32(acc.sums, vpaddq_s32(low, high))};
  }
  static void Pin(I& v) { asm volatile("" : "+w"(v.sums)); }
  static F ToFloat(I v) { return vcvtq_f32_s32(v.sums); }
  // The exponent is added to the bits: the result is normal. A NaN has n = 0.
  static F Shift(F v, F n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(v), vshlq_n_s32(vcvtnq_s32_f32(n), 23)));
  }
  // Magnitudes are ordered like their bits, NaN above all.
  static F KeepNan(F a, F b) {
    return vreinterpretq_f32_s32(vmaxq_s32(vreinterpretq_s32_f32(a), vreinterpretq_s32_f32(b)));
  }
  static float Sum16(const F* v) {
    const F four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
  static float Max16(const F* v) {
    const F four = Max(Max(v[0], v[2]), Max(v[1], v[3]));
    float lanes[4];
    vst1q_f32(lanes, four);
    const float a = lanes[0] > lanes[2] ? lanes[0] : lanes[2], b = lanes[1] > lanes[3] ? lanes[1] : lanes[3];
    return a > b ? a : b;
  }
  static void Round16(const F* v, int16_t* p) {
    for (int i = 0; i < 4; i += 2)
      vst1q_s16(p + 4 * i, vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(v[i])), vqmovn_s32(vcvtnq_s32_f32(v[i + 1]))));
  }
  static F LoadBits(const int16_t* p) { return vreinterpretq_f32_s16(vld1q_s16(p)); }
  static void StoreBits(int16_t* p, F v) { vst1q_s16(p, vreinterpretq_s16_f32(v)); }
  [[gnu::always_inline]] static void Transpose(F* v) { TransposeLanes(v); }
  static void Interleave(const int16_t* a, const int16_t* b, int16_t* p) {
    for (int i = 0; i < 16; i += 8) {
      const int16x8x2_t both = {vld1q_s16(a + i), vld1q_s16(b + i)};
      vst2q_s16(p + 2 * i, both);
    }
  }
};

}  // namespace

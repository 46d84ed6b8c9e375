// Four lanes of spmm_s8_strip.h: all but the product. Included only by kernels/neon_*/spmm_s8.cc.
#pragma once
#include <arm_neon.h>

#include <cstdint>

#include "kernels/neon_dotprod/transpose.h"

namespace {

struct Lanes4 {
  using I = int32x4_t;
  using F = float32x4_t;
  using Quads = int32x2_t;    // the 2 of a step
  using Weights = int8x16_t;  // one of them, in every 32-bit lane
  static constexpr int32_t kLanes = 4, kVectors = 8, kRows = 2, kTokenBytes = 4, kDepth = 768;
  static_assert(kRows * kVectors + kVectors + kRows + 1 <= 32, "sums, tokens and broadcasts fit the registers");

  static I Set(int32_t v) { return vdupq_n_s32(v); }
  static F Set(float v) { return vdupq_n_f32(v); }
  static I Sub(I a, I b) { return vsubq_s32(a, b); }
  static I Mul(I a, I b) { return vmulq_s32(a, b); }
  static F Add(F a, F b) { return vaddq_f32(a, b); }
  static F Mul(F a, F b) { return vmulq_f32(a, b); }
  static F ToFloat(I v) { return vcvtq_f32_s32(v); }
  static F AsFloat(I v) { return vreinterpretq_f32_s32(v); }
  static I AsInt(F v) { return vreinterpretq_s32_f32(v); }

  static I LoadBytes(const uint8_t* p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
  static I Load(const int32_t* p) { return vld1q_s32(p); }
  static F Load(const float* p) { return vld1q_f32(p); }
  static void Store(int32_t* p, I v) { vst1q_s32(p, v); }
  static void Store(float* p, F v) { vst1q_f32(p, v); }

  static Quads LoadQuads(const int8_t* q) { return vreinterpret_s32_s8(vld1_s8(q)); }
  template <int r>
  static Weights Quad(Quads q) {
    return vreinterpretq_s8_s32(vdupq_lane_s32(q, r));
  }

  [[gnu::always_inline]] static void Transpose(F* v) { TransposeLanes(v); }
};

}  // namespace

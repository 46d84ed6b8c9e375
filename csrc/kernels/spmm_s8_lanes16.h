// Sixteen lanes of spmm_s8_strip.h: all but the product. Included only by kernels/<isa>/spmm_s8.cc.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "kernels/avx512/transpose.h"

namespace {

struct Lanes16 {
  using I = __m512i;
  using F = __m512;
  static constexpr int32_t kLanes = 16;

  static I Set(int32_t v) { return _mm512_set1_epi32(v); }
  static F Set(float v) { return _mm512_set1_ps(v); }
  static I Sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I Mul(I a, I b) { return _mm512_mullo_epi32(a, b); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F ToFloat(I v) { return _mm512_cvtepi32_ps(v); }
  static F AsFloat(I v) { return _mm512_castsi512_ps(v); }
  static I AsInt(F v) { return _mm512_castps_si512(v); }

  static I LoadBytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void StoreBytes(uint8_t* p, I v) { _mm512_storeu_si512(p, v); }
  static I Load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  static void Store(float* p, F v) { _mm512_storeu_ps(p, v); }

  // The 4 quads of a step in each 128-bit lane, and one of them in every 32-bit lane.
  static I LoadStep(const int8_t* q) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)));
  }
  template <int r>
  static I Broadcast(I step) {
    return _mm512_shuffle_epi32(step, static_cast<_MM_PERM_ENUM>(r * 0x55));
  }

  [[gnu::always_inline]] static void Transpose(F* v) { TransposeLanes(v); }
};

}  // namespace

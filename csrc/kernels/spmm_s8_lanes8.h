// Eight lanes of spmm_s8_strip.h: all but the product. Included only by kernels/<isa>/spmm_s8.cc.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "kernels/avx2/transpose.h"

namespace {

struct Lanes8 {
  using I = __m256i;
  using F = __m256;
  static constexpr int32_t kLanes = 8;

  static I Set(int32_t v) { return _mm256_set1_epi32(v); }
  static F Set(float v) { return _mm256_set1_ps(v); }
  static I Sub(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I Mul(I a, I b) { return _mm256_mullo_epi32(a, b); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F ToFloat(I v) { return _mm256_cvtepi32_ps(v); }
  static F AsFloat(I v) { return _mm256_castsi256_ps(v); }
  static I AsInt(F v) { return _mm256_castps_si256(v); }

  static I LoadBytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void StoreBytes(uint8_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static I Load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static void Store(float* p, F v) { _mm256_storeu_ps(p, v); }

  // The 2 quads of a step in each 64-bit lane, and one of them in every 32-bit lane.
  static I LoadStep(const int8_t* q) {
    return _mm256_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(q)));
  }
  template <int r>
  static I Broadcast(I step) {
    return _mm256_shuffle_epi32(step, r * 0x55);
  }

  [[gnu::always_inline]] static void Transpose(F* v) { TransposeLanes(v); }
};

}  // namespace

// 4 weight rows by a strip of 64 tokens. Panel: [k / 4][64][4] uint8, so that a zmm holds one quad of k for 16 tokens.
// The four quads of a step are loaded at once and broadcast by shuffles; 16 sums stay in registers.
// Exact: vpdpbusd (unsigned x signed) sums into int32 and never saturates.
#include <immintrin.h>

#include "kernels/avx512vnni/spmm_s8_columns.h"
#include "kernels/spmm_s8_strip.h"

namespace tersor::avx512vnni {
namespace {

// Rows of 16 int32 become columns.
[[gnu::always_inline]] inline void Transpose(__m512i* v) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // v[i + j]: column j of each 128-bit lane, for rows i to i + 3
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm512_shuffle_i32x4(v[j], v[j + 4], 0x88);           // lanes 0, 2 of rows 0-3 and of rows 4-7
    t[j + 4] = _mm512_shuffle_i32x4(v[j], v[j + 4], 0xdd);       // lanes 1, 3
    t[j + 8] = _mm512_shuffle_i32x4(v[j + 8], v[j + 12], 0x88);  // the same of rows 8-15
    t[j + 12] = _mm512_shuffle_i32x4(v[j + 8], v[j + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    v[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
    v[j + 4] = _mm512_shuffle_i32x4(t[j + 4], t[j + 12], 0x88);
    v[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    v[j + 12] = _mm512_shuffle_i32x4(t[j + 4], t[j + 12], 0xdd);
  }
}

struct Avx512Vnni {
  using I = __m512i;
  using F = __m512;
  using Quads = __m512i;  // the four of a step, in each 128-bit lane
  using Weights = __m512i;
  static constexpr int32_t kLanes = 16, kVectors = 4, kRows = 4, kTokenBytes = 4, kDepth = 768, kSumShift = 0;
  static constexpr int32_t kStrip = kLanes * kVectors;
  static_assert(kRows * kVectors + kVectors + kRows + 1 <= 32, "sums, tokens and broadcasts fit the registers");

  static Quads LoadQuads(const int8_t* q) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)));
  }
  template <int r>
  static Weights Quad(Quads q) {
    return _mm512_shuffle_epi32(q, static_cast<_MM_PERM_ENUM>(r * 0x55));
  }
  static I MulAdd(I acc, const uint8_t* tokens, Weights w) {
    return _mm512_dpbusd_epi32(acc, _mm512_loadu_si512(tokens), w);
  }

  static void Pack(int32_t tokens, int32_t k, const uint8_t* a, int64_t lda, uint8_t* panel) {
    for (int32_t token = 0; token < tokens; token += kLanes)
      for (int32_t p = 0; p < k; p += 64) {
        __m512i v[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) v[i] = _mm512_loadu_si512(a + (token + i) * lda + p);
        tersor::avx512vnni::Transpose(v);
        uint8_t* to = panel + p * kStrip + token * 4;
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * kStrip * 4, v[i]);
      }
  }

  static void Transpose(F* v) {
    __m512i bits[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) bits[i] = _mm512_castps_si512(v[i]);
    tersor::avx512vnni::Transpose(bits);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) v[i] = _mm512_castsi512_ps(bits[i]);
  }

  static I Set(int32_t v) { return _mm512_set1_epi32(v); }
  static F Set(float v) { return _mm512_set1_ps(v); }
  static I Sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I Mul(I a, I b) { return _mm512_mullo_epi32(a, b); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F ToFloat(I v) { return _mm512_cvtepi32_ps(v); }

  static I Load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  static void Store(float* p, F v) { _mm512_storeu_ps(p, v); }
};

constexpr SpmmS8Kernel MakeKernel() {
  using Quads = Strip<Avx512Vnni>;
  SpmmS8Kernel kernel = Quads::Kernel("spmm_s8_4x64_avx512vnni");
  kernel.column_bytes = Columns::kRecord;
  kernel.quad_cost = 20;
  kernel.columns_cost = 28;
  kernel.arrange_cost = 3;
  kernel.arrange = Columns::Arrange;
  kernel.multiply_columns = Columns::Multiply<Quads>;
  return kernel;
}

}  // namespace

const SpmmS8Kernel& SpmmS8() {
  static constexpr SpmmS8Kernel kernel = MakeKernel();
  return kernel;
}

}  // namespace tersor::avx512vnni

// Sixteen lanes: a strip is two registers, 4 rows of it 8 sums, enough to hide the latency of a multiply-add.
#include <immintrin.h>

#include "kernels/spmm_f32_strip.h"

namespace tersor::avx512 {
namespace {

struct Lanes16 {
  using F = __m512;
  static constexpr int32_t kLanes = 16, kRowsAtOnce = 4;

  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F Broadcast(const float* p) {
    int32_t bits;
    std::memcpy(&bits, p, sizeof bits);
    __asm__("" : "+r"(bits));  // broadcast from there: the load ports are busy with the tokens
    return _mm512_castsi512_ps(_mm512_set1_epi32(bits));
  }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }

  [[gnu::always_inline]] static void Transpose(F* v) {
    F t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {  // v[i + j]: column j of each 128-bit lane, for rows i to i + 3
      v[i] = Pairs<0x44>(t[i], t[i + 2]);
      v[i + 1] = Pairs<0xee>(t[i], t[i + 2]);
      v[i + 2] = Pairs<0x44>(t[i + 1], t[i + 3]);
      v[i + 3] = Pairs<0xee>(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      t[j] = _mm512_shuffle_f32x4(v[j], v[j + 4], 0x88);           // lanes 0, 2 of rows 0-3 and of rows 4-7
      t[j + 4] = _mm512_shuffle_f32x4(v[j], v[j + 4], 0xdd);       // lanes 1, 3
      t[j + 8] = _mm512_shuffle_f32x4(v[j + 8], v[j + 12], 0x88);  // the same of rows 8-15
      t[j + 12] = _mm512_shuffle_f32x4(v[j + 8], v[j + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      v[j] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0x88);
      v[j + 4] = _mm512_shuffle_f32x4(t[j + 4], t[j + 12], 0x88);
      v[j + 8] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0xdd);
      v[j + 12] = _mm512_shuffle_f32x4(t[j + 4], t[j + 12], 0xdd);
    }
  }

 private:
  template <int kChoice>
  static F Pairs(F a, F b) {
    return _mm512_shuffle_ps(a, b, kChoice);
  }
};

}  // namespace

const SpmmF32Kernel& SpmmF32() {
  static constexpr SpmmF32Kernel kernel = StripKernel<Lanes16>("spmm_f32_4x32_avx512");
  return kernel;
}

}  // namespace tersor::avx512

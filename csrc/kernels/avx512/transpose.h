// Sixteen vectors of sixteen 32-bit lanes, transposed in registers. Included only by kernel files of this instruction
// set and of those above it.
#pragma once
#include <immintrin.h>

namespace {

[[gnu::always_inline]] inline void TransposeLanes(__m512* floats) {
  __m512i v[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = _mm512_castps_si512(floats[i]);
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
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) floats[i] = _mm512_castsi512_ps(v[i]);
}

}  // namespace

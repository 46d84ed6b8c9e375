// Eight vectors of eight 32-bit lanes, transposed in registers. Included only by kernel files of this instruction set
// and of those above it.
#pragma once
#include <immintrin.h>

namespace {

[[gnu::always_inline]] inline void TransposeLanes(__m256* v) {
  __m256 t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {  // v[i + j]: column j of each 128-bit lane, for rows i to i + 3
    v[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    v[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    v[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    v[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm256_permute2f128_ps(v[j], v[j + 4], 0x20);
    t[j + 4] = _mm256_permute2f128_ps(v[j], v[j + 4], 0x31);
  }
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) v[j] = t[j];
}

}  // namespace

// What the 256-bit and the AVX-512 kernels without VNNI share: sums of eight int32 lanes.
//
// Included only by kernels/<isa>/lut4.cc, inside no namespace.
#pragma once
#include <immintrin.h>

#include "kernels/lut4_rows.h"

namespace {

// Places to rows: a transposition of 4 x 4 integers.
inline void PlacesToRows(const int32_t* places, int32_t* rows) {
  const __m128i* in = reinterpret_cast<const __m128i*>(places);
  const __m128i v0 = _mm_loadu_si128(in), v1 = _mm_loadu_si128(in + 1), v2 = _mm_loadu_si128(in + 2),
                v3 = _mm_loadu_si128(in + 3);
  const __m128i a = _mm_unpacklo_epi32(v0, v1), b = _mm_unpackhi_epi32(v0, v1);
  const __m128i c = _mm_unpacklo_epi32(v2, v3), d = _mm_unpackhi_epi32(v2, v3);
  __m128i* out = reinterpret_cast<__m128i*>(rows);
  _mm_storeu_si128(out, _mm_unpacklo_epi64(a, c));
  _mm_storeu_si128(out + 1, _mm_unpackhi_epi64(a, c));
  _mm_storeu_si128(out + 2, _mm_unpacklo_epi64(b, d));
  _mm_storeu_si128(out + 3, _mm_unpackhi_epi64(b, d));
}

// For each 128-bit lane the sum of its four integers, of four registers.
inline __m256i ReduceLanes(const __m256i* v) {
  return _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
}

// The sums of whole registers.
inline __m128i ReduceWhole(const __m256i* v) {
  const __m256i lanes = ReduceLanes(v);
  return _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
}

}  // namespace

// 4 weight rows by up to 4 rows of x. Masks: [block of 64 k][4 weight rows] of 64 bits; the non-zeros that they stand
// for follow one another in the same order, and vpexpandb puts 64 values of k in their places.
// Exact: vpdpbusd (unsigned x signed) sums into int32 and never saturates.
#include <immintrin.h>

#include "kernels/kernel_api.h"

namespace tersor::avx512vbmi2 {
namespace {

constexpr int32_t kRows = 4, kMaxM = 4;

// Zen 4 takes the destination of vpexpandb for an input even where it is zeroed: a register freshly cleared makes the
// expansions independent of one another, which halves their time.
__m512i Expand(uint64_t mask, const int8_t* values) {
  __m512i w;
  __asm__("vpxord %0, %0, %0" : "=v"(w));
  return _mm512_mask_expand_epi8(w, mask, _mm512_loadu_si512(values));
}

// The sum of the lanes of each of four registers.
__m128i Reduce(const __m512i* v) {
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
  const __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  const __m256i d = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1));
}

template <int kM>
void MultiplyRows(const SpmmS8RowsArgs& g) {
  const uint64_t* masks = g.masks;
  for (int32_t group = 0; group < g.groups; ++group) {
    const int8_t* values = g.values + g.starts[group];
    __m512i acc[kM][kRows];
#pragma GCC unroll 4
    for (int i = 0; i < kM; ++i)
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) acc[i][r] = _mm512_setzero_si512();
    for (int32_t block = 0; block < g.blocks; ++block, masks += kRows) {
      __m512i x[kM];
#pragma GCC unroll 4
      for (int i = 0; i < kM; ++i) x[i] = _mm512_loadu_si512(g.a + i * g.lda + block * 64);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const __m512i w = Expand(masks[r], values);
        values += _mm_popcnt_u64(masks[r]);
#pragma GCC unroll 4
        for (int i = 0; i < kM; ++i) acc[i][r] = _mm512_dpbusd_epi32(acc[i][r], x[i], w);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kM; ++i)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(g.acc + i * g.ld_acc + group * kRows), Reduce(acc[i]));
  }
}

void Multiply(const SpmmS8RowsArgs& g) {
  using Run = void (*)(const SpmmS8RowsArgs&);
  static constexpr Run kByRows[kMaxM] = {MultiplyRows<1>, MultiplyRows<2>, MultiplyRows<3>, MultiplyRows<4>};
  kByRows[g.m - 1](g);
}

}  // namespace

const SpmmS8RowsKernel& SpmmS8Rows() {
  static constexpr SpmmS8RowsKernel kernel = {"spmm_s8_rows_4x64_avx512vbmi2", kRows, kMaxM, Multiply};
  return kernel;
}

}  // namespace tersor::avx512vbmi2

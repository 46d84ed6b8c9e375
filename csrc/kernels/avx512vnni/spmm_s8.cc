// 4 weight rows by a strip of 64 tokens. Panel: [k / 4][64][4] uint8, so that a zmm holds one quad of k for 16 tokens.
// A weight quad is broadcast once and meets the 4 registers of the strip; 16 sums stay in registers.
// Exact: vpdpbusd (unsigned x signed) sums into int32 and never saturates.
#include <immintrin.h>

#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::avx512vnni {
namespace {

constexpr int32_t kRows = 4, kStrip = 64, kDepth = 384;
constexpr int32_t kLanes = 16, kVectors = kStrip / kLanes;
static_assert(kDepth / 4 * kStrip * 4 <= 65536, "offsets into a panel fit 16 bits");
static_assert(kDepth % 64 == 0, "a panel is packed in blocks of 64 values of k");
static_assert(kRows * kVectors + kVectors + kRows <= 32, "accumulators, tokens and broadcasts fit the registers");

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

void Pack(int32_t tokens, int32_t k, const uint8_t* a, int64_t lda, uint8_t* panel) {
  for (int32_t token = 0; token < tokens; token += kLanes)
    for (int32_t p = 0; p < k; p += 64) {
      __m512i v[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) v[i] = _mm512_loadu_si512(a + (token + i) * lda + p);
      Transpose(v);
      uint8_t* to = panel + p * kStrip + token * 4;
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * kStrip * 4, v[i]);
    }
}

template <int kLive>
void MultiplyStrip(const SpmmS8Args& g) {
  const int8_t* quads = g.quads + g.starts[0] * kRows * 4;
  const uint16_t* offsets = g.offsets + g.starts[0] * kRows;
  for (int32_t group = 0; group < g.groups; ++group) {
    int32_t* rows[kRows];
    __m512i acc[kRows][kLive];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      rows[r] = g.acc + int64_t{g.order[group * kRows + r]} * kStrip;
#pragma GCC unroll 4
      for (int v = 0; v < kLive; ++v)
        acc[r][v] = g.add ? _mm512_loadu_si512(rows[r] + v * kLanes) : _mm512_setzero_si512();
    }
    for (int64_t steps = g.starts[group + 1] - g.starts[group]; steps > 0; --steps) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const uint8_t* tokens = g.panel + offsets[r];
        int32_t quad;
        std::memcpy(&quad, quads + r * 4, sizeof quad);
        __asm__("" : "+r"(quad));  // broadcast from there: the load ports are busy with the tokens
        __m512i w = _mm512_set1_epi32(quad);
        __asm__("" : "+v"(w));  // one broadcast, not one per register of the strip
#pragma GCC unroll 4
        for (int v = 0; v < kLive; ++v)
          acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], _mm512_loadu_si512(tokens + v * 64), w);
      }
      quads += kRows * 4;
      offsets += kRows;
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kLive; ++v) _mm512_storeu_si512(rows[r] + v * kLanes, acc[r][v]);
  }
}

void Multiply(const SpmmS8Args& g) {
  using Run = void (*)(const SpmmS8Args&);
  static constexpr Run kByVectors[kVectors] = {MultiplyStrip<1>, MultiplyStrip<2>, MultiplyStrip<3>, MultiplyStrip<4>};
  kByVectors[(g.tokens - 1) / kLanes](g);
}

template <bool kResidual>
void FinishColumns(const SpmmS8FinishArgs& g, int32_t column) {
  const int32_t left = g.n - column;
  const __mmask16 live = static_cast<__mmask16>(left >= kLanes ? 0xffffu : (1u << left) - 1u);
  const __m512i col_sum = _mm512_loadu_si512(g.col_sum + column);
  const __m512 col_scale = _mm512_loadu_ps(g.col_scale + column), bias = _mm512_loadu_ps(g.bias + column);
  for (int32_t token = 0; token < g.m; token += kLanes) {
    __m512i v[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) v[i] = _mm512_loadu_si512(g.acc + (column + i) * kStrip + token);
    Transpose(v);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const int32_t row = token + i;
      if (row >= g.m) return;
      const __m512i correction = _mm512_mullo_epi32(_mm512_set1_epi32(g.row_zero[row]), col_sum);
      const __m512 t = _mm512_cvtepi32_ps(_mm512_sub_epi32(v[i], correction));
      const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(g.row_scale[row]), col_scale);
      __m512 y = _mm512_add_ps(_mm512_mul_ps(t, scale), bias);
      if (kResidual) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(live, g.residual + row * g.ldr + column));
      _mm512_mask_storeu_ps(g.c + row * g.ldc + column, live, y);
    }
  }
}

void Finish(const SpmmS8FinishArgs& g) {
  for (int32_t column = 0; column < g.n; column += kLanes)
    g.residual != nullptr ? FinishColumns<true>(g, column) : FinishColumns<false>(g, column);
}

}  // namespace

const SpmmS8Kernel& SpmmS8() {
  static constexpr SpmmS8Kernel kernel = {"spmm_s8_4x64_avx512vnni", kRows, kStrip, kDepth, Pack, Multiply, Finish};
  return kernel;
}

}  // namespace tersor::avx512vnni

// The form of columns: 4 weight rows by a strip of 64 tokens, four values of k of any place to a quad.
//
// A record is one value of k for 64 tokens, one zmm; byte 16 L + 8 h + 2 j + o belongs to token 32 h + 16 o + 4 L + j,
// so that after interleaving the sums of 16 neighbouring tokens share a register. Interleaving four records byte by
// byte takes 8 shuffles, for which there are two ports. Here records of odd number have their neighbouring bytes
// exchanged: the second stage is then a blend of 16-bit pairs, which any port does, at the price of two classes of
// records:
//
//   even, unpacked   a0 b0  a1 b1  a2 b2  a3 b3      blended       a0 b0 c0 d0  a2 b2 c2 d2     tokens of even place
//   odd, unpacked    c1 d1  c0 d0  c3 d3  c2 d2      the others    c1 d1 a1 b1  c3 d3 a3 b3     the other ones
//
// The others meet the weights rotated by two bytes. Exact: vpdpbusd never saturates.
//
// Included only by spmm_s8.cc.
#pragma once
#include <immintrin.h>

#include <cstring>

#include "kernels/spmm_s8_strip.h"

namespace {

struct Columns {
  static constexpr int32_t kRows = 4, kStrip = 64, kRecord = 64;
  static constexpr __mmask32 kOddPairs = 0xaaaaaaaa;

  static __m512i Load(const uint8_t* p) { return _mm512_loadu_si512(p); }

  // Tokens 32 h + 0 to 15 and the 16 that follow, for h = 0 (low) or 1; the second vector begins with c and d.
  template <bool kHigh>
  [[gnu::always_inline]] static void Interleave(__m512i a, __m512i b, __m512i c, __m512i d, __m512i* even,
                                                __m512i* odd) {
    const __m512i ab = kHigh ? _mm512_unpackhi_epi8(a, b) : _mm512_unpacklo_epi8(a, b);
    const __m512i cd = kHigh ? _mm512_unpackhi_epi8(c, d) : _mm512_unpacklo_epi8(c, d);
    *even = _mm512_mask_blend_epi16(kOddPairs, ab, cd);
    *odd = _mm512_mask_blend_epi16(kOddPairs, cd, ab);
  }

  static __m512i ExchangeBytes(__m512i v) {
    return _mm512_shuffle_epi8(
        v, _mm512_broadcast_i32x4(_mm_setr_epi8(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)));
  }

  // The quads of four values of k, 64 tokens, become the records of the four, in place.
  static void Separate(uint8_t* p) {
    const __m512i by_value =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m512i q[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) q[i] = _mm512_shuffle_epi8(Load(p + i * 64), by_value);
    const __m512i low01 = _mm512_unpacklo_epi8(q[0], q[1]), high01 = _mm512_unpackhi_epi8(q[0], q[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(q[2], q[3]), high23 = _mm512_unpackhi_epi8(q[2], q[3]);
    _mm512_storeu_si512(p, _mm512_unpacklo_epi64(low01, low23));
    _mm512_storeu_si512(p + 64, _mm512_unpackhi_epi64(low01, low23));
    _mm512_storeu_si512(p + 128, _mm512_unpacklo_epi64(high01, high23));
    _mm512_storeu_si512(p + 192, _mm512_unpackhi_epi64(high01, high23));
  }

  static void Arrange(int32_t k, const uint16_t* columns, bool quads, uint8_t* packed, uint8_t* panel) {
    for (int32_t p = 0; p < k; p += 4) Separate(packed + p * kRecord);
    const auto record = [&](int32_t i) { return Load(packed + columns[i] * kRecord); };
    for (int32_t p = 0; p < k; p += 4) {
      const __m512i a = record(p), b = record(p + 1), c = record(p + 2), d = record(p + 3);
      __m512i out[4] = {a, ExchangeBytes(b), c, ExchangeBytes(d)};
      if (quads) {
        const __m512i c_odd = ExchangeBytes(c), d_odd = out[3];
        Interleave<false>(a, b, c_odd, d_odd, out, out + 1);
        Interleave<true>(a, b, c_odd, d_odd, out + 2, out + 3);
        out[1] = _mm512_rol_epi32(out[1], 16);
        out[3] = _mm512_rol_epi32(out[3], 16);
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) _mm512_storeu_si512(panel + (p + i) * kRecord, out[i]);
    }
  }

  template <typename Group, int kHalves>
  static void MultiplyHalves(const tersor::SpmmS8Args& g) {
    const int8_t* quads = g.quads + g.starts[0] * kRows * 4;
    const uint16_t* offsets = g.offsets + g.starts[0] * kRows * 4;
    for (int32_t i = 0; i < g.groups; ++i) {
      const uint8_t* order = g.order + i * kRows;
      Group group;
      group.Begin(g, order);
      for (int64_t steps = g.starts[i + 1] - g.starts[i]; steps > 0; --steps) {
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          uint64_t at;
          int32_t quad;
          std::memcpy(&at, offsets + r * 4, sizeof at);
          std::memcpy(&quad, quads + r * 4, sizeof quad);
          Step<kHalves>(g.panel, at, _mm512_set1_epi32(quad), group.acc[r]);
        }
        quads += kRows * 4;
        offsets += kRows * 4;
      }
      if (g.y == nullptr)
        group.Store(g, order);
      else
        group.Scale(g, order);
    }
  }

  template <int kHalves>
  [[gnu::always_inline]] static void Step(const uint8_t* panel, uint64_t at, __m512i w, __m512i* acc) {
    const auto record = [&](int i) { return Load(panel + static_cast<uint16_t>(at >> (16 * i))); };
    const __m512i a = record(0), b = record(1), c = record(2), d = record(3), rotated = _mm512_rol_epi32(w, 16);
    __m512i even, odd;
    Interleave<false>(a, b, c, d, &even, &odd);
    acc[0] = _mm512_dpbusd_epi32(acc[0], even, w);
    acc[1] = _mm512_dpbusd_epi32(acc[1], odd, rotated);
    if constexpr (kHalves > 1) {
      Interleave<true>(a, b, c, d, &even, &odd);
      acc[2] = _mm512_dpbusd_epi32(acc[2], even, w);
      acc[3] = _mm512_dpbusd_epi32(acc[3], odd, rotated);
    }
  }

  template <typename StripOf>
  static void Multiply(const tersor::SpmmS8Args& g) {
    if (g.tokens <= kStrip / 2)
      MultiplyHalves<typename StripOf::template Group<2>, 1>(g);
    else
      MultiplyHalves<typename StripOf::template Group<4>, 2>(g);
  }
};

}  // namespace

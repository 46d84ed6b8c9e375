// 4 rows of x by 16 weight rows; a zmm holds 16 values of k for 4 of them, and vpshufb looks up each lane in its table.
// Exact: vpdpbusd (unsigned x signed) sums into int32 and never saturates.
#include <immintrin.h>

#include "kernels/lut4_rows.h"

namespace tersor::avx512vnni {
namespace {

struct Lanes64 {
  using W = __m512i;
  using M = __mmask64;
  using X = __m512i;
  using Sums = __m512i;
  static constexpr int32_t kPlaces = 4;
  static constexpr bool kSigned = false;
  static constexpr int AtOnce(int) { return 4; }

  static W Load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void Store(int8_t* p, W w) { _mm512_storeu_si512(p, w); }
  static W Low(W codes) { return _mm512_and_si512(codes, _mm512_set1_epi8(15)); }
  static W High(W codes) { return Low(_mm512_srli_epi16(codes, 4)); }
  static W Look(W table, W codes) { return _mm512_shuffle_epi8(table, codes); }
  static M LoadBits(const uint8_t* p) {
    uint64_t bits;
    std::memcpy(&bits, p, sizeof bits);
    return bits;
  }
  static W Pick(M bits, W set, W clear) { return _mm512_mask_blend_epi8(bits, clear, set); }
  static X LoadX(const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static X LoadX(const uint8_t* p, int32_t) { return LoadX(p); }  // zeros follow
  static Sums Zero() { return _mm512_setzero_si512(); }
  static Sums MulAdd(Sums sums, W w, X x) { return _mm512_dpbusd_epi32(sums, x, w); }

  // Vector i has the places 4 i to 4 i + 3, which are the weight rows i, 4 + i, 8 + i, 12 + i.
  template <int kCount>
  static void Reduce(const Sums* v, int32_t* out) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    _mm512_storeu_si512(out, _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)));
  }
  static void ToRows(const int32_t* sums, int32_t* rows) { std::memcpy(rows, sums, 16 * sizeof *rows); }
};

// 16 values of k of 16 weight rows: four of k of all rows to a register.
void Transpose(const __m512i* v, int64_t step, char* to) {
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  _mm512_storeu_si512(to, _mm512_unpacklo_epi64(a, c));
  _mm512_storeu_si512(to + step, _mm512_unpackhi_epi64(a, c));
  _mm512_storeu_si512(to + 2 * step, _mm512_unpacklo_epi64(b, d));
  _mm512_storeu_si512(to + 3 * step, _mm512_unpackhi_epi64(b, d));
}

// Panels of gemm_s8: [ceil(k / 4)][32][4].
struct ToPanel {
  template <int kHigh>
  static void Run(const Lut4Panel& panel, void* to) {
    constexpr int64_t kQuad = 128;
    char* out = static_cast<char*>(to);
    const int32_t quads = (panel.k + 3) / 4;
    for (int32_t p = 0; p < panel.parts; ++p) {
      const Part part = PartOf(panel, p);
      const uint8_t* step = part.codes;
      __m512i tables[4][Books(kHigh)];
      for (int v = 0; v < 4; ++v) LoadTables<Lanes64, kHigh>(part.table, 4 * v, tables[v]);
      for (int32_t k = 0; k < part.k; k += kStepLut4, step += StepBytes(kHigh)) {
        __m512i low[4], high[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          low[v] = Decode<Lanes64, kHigh, false>(step, 4 * v, tables[v]);
          high[v] = Decode<Lanes64, kHigh, true>(step, 4 * v, tables[v]);
        }
        const int32_t quad = (part.begin + k) / 4;
        if (quad + 8 <= quads) {
          Transpose(low, kQuad, out + quad * kQuad);
          Transpose(high, kQuad, out + (quad + 4) * kQuad);
        } else {  // the panel ends within this step
          char rest[8][64];
          Transpose(low, 64, rest[0]);
          Transpose(high, 64, rest[4]);
          for (int32_t i = 0; quad + i < quads; ++i) std::memcpy(out + (quad + i) * kQuad, rest[i], 64);
        }
      }
    }
  }
};

void DecodePanel(const Lut4Panel& panel, void* to) { ByForm<ToPanel>(panel, panel, to); }

}  // namespace

const Lut4Kernel& Lut4() {
  static constexpr Lut4Kernel kernel = {"lut4_4x16_avx512vnni",     kMaxM,      Rows<Lanes64>, DecodeRows<Lanes64>,
                                        "gemm_s8_14x32_avx512vnni", DecodePanel};
  return kernel;
}

}  // namespace tersor::avx512vnni

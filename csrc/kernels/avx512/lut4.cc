// 4 rows of x by 16 weight rows, for CPUs without VNNI; a ymm holds 16 values of k for 2 of them, looked up by vpshufb
// and widened to a zmm. Exact: vpmaddwd sums two products of int16 into int32, at most 2 * 255 * 127.
#include "kernels/lut4_lanes8.h"

namespace tersor::avx512 {
namespace {

struct Lanes32 {
  using W = __m256i;
  using M = __mmask32;
  using X = __m512i;
  using Sums = __m512i;
  static constexpr int32_t kPlaces = 2;
  static constexpr bool kSigned = false;
  static constexpr int AtOnce(int m) { return m == 1 ? 8 : 4; }

  static W Load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void Store(int8_t* p, W w) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), w); }
  static W Low(W codes) { return _mm256_and_si256(codes, _mm256_set1_epi8(15)); }
  static W High(W codes) { return Low(_mm256_srli_epi16(codes, 4)); }
  static W Look(W table, W codes) { return _mm256_shuffle_epi8(table, codes); }
  static M LoadBits(const uint8_t* p) {
    uint32_t bits;
    std::memcpy(&bits, p, sizeof bits);
    return bits;
  }
  static W Pick(M bits, W set, W clear) { return _mm256_mask_blend_epi8(bits, clear, set); }
  static X LoadX(const uint8_t* p) {
    return _mm512_broadcast_i64x4(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static X LoadX(const uint8_t* p, int32_t) { return LoadX(p); }  // zeros follow
  static Sums Zero() { return _mm512_setzero_si512(); }
  static Sums MulAdd(Sums sums, W w, X x) {
    return _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_cvtepi8_epi16(w), x));
  }
  template <int kCount>
  static void Reduce(const Sums* v, int32_t* out) {
    for (int i = 0; i < kCount; i += 2) {
      const __m256i halves[4] = {_mm512_castsi512_si256(v[i]), _mm512_extracti64x4_epi64(v[i], 1),
                                 _mm512_castsi512_si256(v[i + 1]), _mm512_extracti64x4_epi64(v[i + 1], 1)};
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i), ReduceWhole(halves));
    }
  }
  static void ToRows(const int32_t* places, int32_t* rows) { PlacesToRows(places, rows); }
};

}  // namespace

const Lut4Kernel& Lut4() {
  static constexpr Lut4Kernel kernel = {"lut4_4x16_avx512",  kMaxM,   Rows<Lanes32>,
                                        DecodeRows<Lanes32>, nullptr, nullptr};
  return kernel;
}

}  // namespace tersor::avx512

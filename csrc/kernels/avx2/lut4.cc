// 4 rows of x by 16 weight rows; an xmm holds 16 values of k for one of them, looked up by vpshufb and widened.
// Exact: vpmaddwd sums two products of int16 into int32, at most 2 * 255 * 127.
#include "kernels/lut4_lanes8.h"

namespace tersor::avx2 {
namespace {

struct Lanes16 {
  using W = __m128i;
  using M = __m128i;
  using X = __m256i;
  using Sums = __m256i;
  static constexpr int32_t kPlaces = 1;
  static constexpr bool kSigned = false;
  static constexpr int AtOnce(int m) { return m == 1 ? 8 : 4; }

  static W Load(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static void Store(int8_t* p, W w) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), w); }
  static W Low(W codes) { return _mm_and_si128(codes, _mm_set1_epi8(15)); }
  static W High(W codes) { return Low(_mm_srli_epi16(codes, 4)); }
  static W Look(W table, W codes) { return _mm_shuffle_epi8(table, codes); }
  static M LoadBits(const uint8_t* p) {
    int16_t bits;
    std::memcpy(&bits, p, sizeof bits);
    const __m128i bytes = _mm_set_epi64x(0x0101010101010101, 0);
    const __m128i place = _mm_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    return _mm_cmpeq_epi8(_mm_and_si128(_mm_shuffle_epi8(_mm_set1_epi16(bits), bytes), place), place);
  }
  static W Pick(M bits, W set, W clear) { return _mm_blendv_epi8(clear, set, bits); }
  static X LoadX(const uint8_t* p) { return _mm256_cvtepu8_epi16(Load(p)); }
  static X LoadX(const uint8_t* p, int32_t) { return LoadX(p); }  // zeros follow
  static Sums Zero() { return _mm256_setzero_si256(); }
  static Sums MulAdd(Sums sums, W w, X x) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_cvtepi8_epi16(w), x));
  }
  template <int kCount>
  static void Reduce(const Sums* v, int32_t* out) {
    for (int i = 0; i < kCount; i += 4) _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), ReduceWhole(v + i));
  }
  static void ToRows(const int32_t* places, int32_t* rows) { PlacesToRows(places, rows); }
};

}  // namespace

const Lut4Kernel& Lut4() {
  static constexpr Lut4Kernel kernel = {"lut4_4x16_avx2", kMaxM, Rows<Lanes16>, DecodeRows<Lanes16>, nullptr, nullptr};
  return kernel;
}

}  // namespace tersor::avx2

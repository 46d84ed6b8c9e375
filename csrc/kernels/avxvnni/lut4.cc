// 4 rows of x by 16 weight rows; a ymm holds 16 values of k for 2 of them, and vpshufb looks up each lane in its table.
// Exact: vpdpbusd (unsigned x signed) sums into int32 and never saturates.
#include "kernels/avxvnni/isa_name.h"
#include "kernels/lut4_lanes8.h"

namespace tersor::TERSOR_ISA_NAME {
namespace {

struct Lanes32 {
  using W = __m256i;
  using M = __m256i;
  using X = __m256i;
  using Sums = __m256i;
  static constexpr int32_t kPlaces = 2;
  static constexpr bool kSigned = false;
  static constexpr int AtOnce(int m) { return m == 1 ? 8 : 4; }

  static W Load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void Store(int8_t* p, W w) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), w); }
  static W Low(W codes) { return _mm256_and_si256(codes, _mm256_set1_epi8(15)); }
  static W High(W codes) { return Low(_mm256_srli_epi16(codes, 4)); }
  static W Look(W table, W codes) { return _mm256_shuffle_epi8(table, codes); }
  static M LoadBits(const uint8_t* p) {
    int32_t bits;
    std::memcpy(&bits, p, sizeof bits);
    const __m256i bytes = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
    const __m256i place = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    return _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), bytes), place), place);
  }
  static W Pick(M bits, W set, W clear) { return _mm256_blendv_epi8(clear, set, bits); }
  static X LoadX(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static X LoadX(const uint8_t* p, int32_t) { return LoadX(p); }  // zeros follow
  static Sums Zero() { return _mm256_setzero_si256(); }
  static Sums MulAdd(Sums sums, W w, X x) {
#ifdef __AVX512VNNI__
    return _mm256_dpbusd_epi32(sums, x, w);
#else
    return _mm256_dpbusd_avx_epi32(sums, x, w);
#endif
  }
  template <int kCount>
  static void Reduce(const Sums* v, int32_t* out) {
    for (int i = 0; i < kCount; i += 4) {
      int32_t sums[8];  // of the even places, then of the odd ones
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), ReduceLanes(v + i));
      for (int j = 0; j < 4; ++j) {
        out[2 * (i + j)] = sums[j];
        out[2 * (i + j) + 1] = sums[4 + j];
      }
    }
  }
  static void ToRows(const int32_t* places, int32_t* rows) { PlacesToRows(places, rows); }
};

}  // namespace

const Lut4Kernel& Lut4() {
  static constexpr Lut4Kernel kernel = {
      "lut4_4x16_" TERSOR_QUOTE(TERSOR_ISA_NAME), kMaxM, Rows<Lanes32>, DecodeRows<Lanes32>, nullptr, nullptr};
  return kernel;
}

}  // namespace tersor::TERSOR_ISA_NAME

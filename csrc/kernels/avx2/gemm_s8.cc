// 6x16 tile. Panel: [ceil(k / 2)][nr][2] int8.
// Weights are widened as they are loaded, A once per 256 values of k, into the stack.
// Exact: vpmaddwd sums two products of int16 into int32, at most 2 * 255 * 127. vpmaddubsw would need no widening,
// but it saturates.
#include <immintrin.h>

#include "kernels/gemm_s8_tile.h"

namespace tersor::avx2 {
namespace {

struct Avx2 {
  using I = __m256i;
  using F = __m256;
  static constexpr int32_t kLanes = 8, kVectors = 2, kKr = 2, kMr = 6;
  static constexpr bool kWidens = true;
  static_assert(kMr * kVectors + kVectors + 2 <= 16, "accumulators, weights, broadcast and product fit the registers");

  static I Weights(const char* b) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b))); }
  static I Broadcast(const char* a) {
    int32_t pair;
    std::memcpy(&pair, a, sizeof pair);
    return _mm256_set1_epi32(pair);
  }
  static I MulAdd(I acc, I a, I w) {
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(a, w));
    __asm__ volatile("" : "+x"(acc));  // keeps the compiler from computing all products first and spilling the sums
    return acc;
  }

  static void Widen(int32_t k, const uint8_t* from, int16_t* to) {
    int32_t i = 0;
    for (; i + 16 <= k; i += 16) Widen16(from + i, to + i);
    if (i == k) return;
    uint8_t rest[16] = {};
    std::memcpy(rest, from + i, static_cast<size_t>(k - i));
    Widen16(rest, to + i);
  }

  static I Set(int32_t v) { return _mm256_set1_epi32(v); }
  static F Set(float v) { return _mm256_set1_ps(v); }
  static I Sub(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I Mul(I a, I b) { return _mm256_mullo_epi32(a, b); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F ToFloat(I v) { return _mm256_cvtepi32_ps(v); }

  static I Load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static void Store(float* p, F v) { _mm256_storeu_ps(p, v); }

 private:
  static void Widen16(const uint8_t* from, int16_t* to) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_cvtepu8_epi16(bytes));
  }
};

}  // namespace

const GemmS8Kernel& GemmS8() {
  static constexpr GemmS8Kernel kernel = Kernel<Avx2>("gemm_s8_6x16_avx2");
  return kernel;
}

}  // namespace tersor::avx2

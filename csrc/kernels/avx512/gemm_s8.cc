// 12x32 tile, for CPUs without VNNI. Panel: [ceil(k / 2)][nr][2] int8.
// Weights are widened as they are loaded, A once per 256 values of k, into the stack.
// Exact: vpmaddwd sums two products of int16 into int32, at most 2 * 255 * 127.
#include <immintrin.h>

#include "kernels/gemm_s8_tile.h"

namespace tersor::avx512 {
namespace {

struct Avx512 {
  using I = __m512i;
  using F = __m512;
  static constexpr int32_t kLanes = 16, kVectors = 2, kKr = 2, kMr = 12;
  static constexpr bool kWidens = true;
  static_assert(kMr * kVectors + kVectors + 2 <= 32, "accumulators, weights, broadcast and product fit the registers");

  static I Weights(const char* b) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
  }
  static I Broadcast(const char* a) {
    int32_t pair;
    std::memcpy(&pair, a, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static I MulAdd(I acc, I a, I w) {
    acc = _mm512_add_epi32(acc, _mm512_madd_epi16(a, w));
    __asm__ volatile("" : "+v"(acc));  // keeps the compiler from computing all products first and spilling the sums
    return acc;
  }

  static void Widen(int32_t k, const uint8_t* from, int16_t* to) {
    for (int32_t i = 0; i < k; i += 32) {
      const int32_t left = k - i;
      const __mmask32 live = left >= 32 ? 0xffffffffu : (1u << left) - 1u;
      _mm512_storeu_si512(to + i, _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(live, from + i)));
    }
  }

  static I Set(int32_t v) { return _mm512_set1_epi32(v); }
  static F Set(float v) { return _mm512_set1_ps(v); }
  static I Sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I Mul(I a, I b) { return _mm512_mullo_epi32(a, b); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F ToFloat(I v) { return _mm512_cvtepi32_ps(v); }

  static I Load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  static void Store(float* p, F v) { _mm512_storeu_ps(p, v); }
};

}  // namespace

const GemmS8Kernel& GemmS8() {
  static constexpr GemmS8Kernel kernel = Kernel<Avx512>("gemm_s8_12x32_avx512");
  return kernel;
}

}  // namespace tersor::avx512

// 6x16 tile. Panel: [ceil(k / 4)][nr][4] int8. A stays row-major: 4 bytes of a row are broadcast.
// Exact: vpdpbusd (unsigned x signed) sums into int32 and never saturates.
#include <immintrin.h>

#include "kernels/avxvnni/isa_name.h"
#include "kernels/gemm_s8_tile.h"

namespace tersor::TERSOR_ISA_NAME {
namespace {

struct AvxVnni {
  using I = __m256i;
  using F = __m256;
  static constexpr int32_t kLanes = 8, kVectors = 2, kKr = 4, kMr = 6;
  static constexpr bool kWidens = false;
  static_assert(kMr * kVectors + kVectors + 1 <= 16, "accumulators, weights and broadcast fit the registers");

  static I Weights(const char* b) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)); }
  static I Broadcast(const char* a) {
    int32_t quad;
    std::memcpy(&quad, a, sizeof quad);
    return _mm256_set1_epi32(quad);
  }
  static I MulAdd(I acc, I a, I w) {
#ifdef __AVX512VNNI__
    return _mm256_dpbusd_epi32(acc, a, w);
#else
    return _mm256_dpbusd_avx_epi32(acc, a, w);
#endif
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
};

}  // namespace

const GemmS8Kernel& GemmS8() {
  static constexpr GemmS8Kernel kernel = Kernel<AvxVnni>("gemm_s8_6x16_" TERSOR_QUOTE(TERSOR_ISA_NAME));
  return kernel;
}

}  // namespace tersor::TERSOR_ISA_NAME

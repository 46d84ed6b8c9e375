// Eight lanes.
#include <immintrin.h>

#include "kernels/activation_math.h"

namespace tersor::avx2 {
namespace {

struct Lanes8 {
  using F = __m256;
  using I = __m256i;
  static constexpr int64_t kLanes = 8;

  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F Set(float v) { return _mm256_set1_ps(v); }
  static I SetInt(int32_t v) { return _mm256_set1_epi32(v); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static F Min(F a, F b) { return _mm256_min_ps(a, b); }
  static F Abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static F IfNegative(F v, F a, F b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_LT_OQ));
  }
  static I Bits(F v) { return _mm256_castps_si256(v); }
  static F FromBits(I v) { return _mm256_castsi256_ps(v); }
  static I AddInt(I a, I b) { return _mm256_add_epi32(a, b); }
  static I SubInt(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I HalfInt(I a) { return _mm256_srai_epi32(a, 1); }
  static I ToExponent(I a) { return _mm256_slli_epi32(a, 23); }
};

}  // namespace

const ActivationKernel& Activation() {
  static constexpr ActivationKernel kernel = {"activation_avx2", ApplyActivation<Lanes8>};
  return kernel;
}

}  // namespace tersor::avx2

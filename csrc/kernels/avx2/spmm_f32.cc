// Eight lanes: a strip is four registers, two rows of it 8 sums, so that the two pipes are kept busy.
#include <immintrin.h>

#include "kernels/spmm_f32_strip.h"

namespace tersor::avx2 {
namespace {

struct Lanes8 {
  using F = __m256;
  static constexpr int32_t kLanes = 8, kRowsAtOnce = 2;

  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F Broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }

  [[gnu::always_inline]] static void Transpose(F* v) {
    F t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {  // v[i + j]: column j of each 128-bit lane, for rows i to i + 3
      v[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      v[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      v[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      v[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      t[j] = _mm256_permute2f128_ps(v[j], v[j + 4], 0x20);
      t[j + 4] = _mm256_permute2f128_ps(v[j], v[j + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) v[j] = t[j];
  }
};

}  // namespace

const SpmmF32Kernel& SpmmF32() {
  static constexpr SpmmF32Kernel kernel = StripKernel<Lanes8>("spmm_f32_4x32_avx2");
  return kernel;
}

}  // namespace tersor::avx2

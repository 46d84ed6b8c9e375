// 6x16 tile: 12 sums, two registers of weights and one value of A in every lane.
#include <immintrin.h>

#include "kernels/gemm_f32_tile.h"

namespace tersor::avx2 {
namespace {

struct Vectors8 {
  using F = __m256;
  static constexpr int32_t kLanes = 8, kVectors = 2, kMr = 6;
  static_assert(kMr * kVectors + kVectors + 1 <= 16, "sums, weights and the broadcast fit the registers");

  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F Broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
};

}  // namespace

const GemmF32Kernel& GemmF32() {
  static constexpr GemmF32Kernel kernel = FloatKernel<Vectors8>("gemm_f32_6x16_avx2");
  return kernel;
}

}  // namespace tersor::avx2

// 14x32 tile: 28 sums, two registers of weights and one value of A in every lane.
#include <immintrin.h>

#include "kernels/gemm_f32_tile.h"

namespace tersor::avx512 {
namespace {

struct Vectors16 {
  using F = __m512;
  static constexpr int32_t kLanes = 16, kVectors = 2, kMr = 14;
  static_assert(kMr * kVectors + kVectors + 1 <= 32, "sums, weights and the broadcast fit the registers");

  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F Broadcast(const float* p) {
    F v = _mm512_set1_ps(*p);
    __asm__("" : "+v"(v));  // one load, not one per multiply-add
    return v;
  }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace

const GemmF32Kernel& GemmF32() {
  static constexpr GemmF32Kernel kernel = FloatKernel<Vectors16>("gemm_f32_14x32_avx512");
  return kernel;
}

}  // namespace tersor::avx512

// 12x8 tile: 24 sums, two registers of weights and one value of A in every lane.
#include <arm_neon.h>

#include "kernels/gemm_f32_tile.h"

namespace tersor::neon_dotprod {
namespace {

struct Vectors4 {
  using F = float32x4_t;
  static constexpr int32_t kLanes = 4, kVectors = 2, kMr = 12;
  static_assert(kMr * kVectors + kVectors + 1 <= 32, "sums, weights and the broadcast fit the registers");

  static F Load(const float* p) { return vld1q_f32(p); }
  static void Store(float* p, F v) { vst1q_f32(p, v); }
  static F Broadcast(const float* p) { return vld1q_dup_f32(p); }
  static F Add(F a, F b) { return vaddq_f32(a, b); }
  static F Fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
};

}  // namespace

const GemmF32Kernel& GemmF32() {
  static constexpr GemmF32Kernel kernel = FloatKernel<Vectors4>("gemm_f32_12x8_neon_dotprod");
  return kernel;
}

}  // namespace tersor::neon_dotprod

// Four lanes: a strip is eight registers, two rows of it 16 sums.
#include <arm_neon.h>

#include "kernels/spmm_f32_strip.h"

namespace tersor::neon_dotprod {
namespace {

struct Lanes4 {
  using F = float32x4_t;
  static constexpr int32_t kLanes = 4, kRowsAtOnce = 2;

  static F Load(const float* p) { return vld1q_f32(p); }
  static void Store(float* p, F v) { vst1q_f32(p, v); }
  static F Broadcast(const float* p) { return vld1q_dup_f32(p); }
  static F Add(F a, F b) { return vaddq_f32(a, b); }
  static F Fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }

  [[gnu::always_inline]] static void Transpose(F* v) {
    const float32x4x2_t a = vtrnq_f32(v[0], v[1]), b = vtrnq_f32(v[2], v[3]);
    v[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
    v[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
    v[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
    v[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
  }
};

}  // namespace

const SpmmF32Kernel& SpmmF32() {
  static constexpr SpmmF32Kernel kernel = StripKernel<Lanes4>("spmm_f32_4x32_neon_dotprod");
  return kernel;
}

}  // namespace tersor::neon_dotprod

// 4x4 tile over a panel [k][nr]. The fused multiply-adds are asked for: a CPU without the instruction gets the C
// library's exact one.
#include "kernels/kernel_api.h"

namespace tersor::scalar {
namespace {

constexpr int32_t kMr = 4, kNr = 4;

void Tile(const GemmF32Args& g) {
  for (int32_t i = 0; i < g.m; ++i)
    for (int32_t j = 0; j < g.n; ++j) {
      const float* a = g.a + i * g.lda;
      const float* w = g.panel + j / kNr * g.panel_stride + j % kNr;
      float* c = g.c + i * g.ldc + j;
      float sum = g.bias == nullptr ? *c : g.bias[j];
      for (int32_t p = 0; p < g.k; ++p) sum = __builtin_fmaf(a[p], w[p * kNr], sum);
      *c = g.residual == nullptr ? sum : sum + g.residual[i * g.ldr + j];
    }
}

}  // namespace

const GemmF32Kernel& GemmF32() {
  static constexpr GemmF32Kernel kernel = {"gemm_f32_4x4_scalar", kMr, kNr, Tile};
  return kernel;
}

}  // namespace tersor::scalar

// One lane; rows, strip and depth as in spmm_f32_strip.h. The fused multiply-adds are asked for: a CPU without the
// instruction gets the C library's exact one.
#include "kernels/kernel_api.h"

namespace tersor::scalar {
namespace {

constexpr int32_t kRows = 4, kStrip = 32, kDepth = 256;
constexpr int32_t kRowBytes = kStrip * 4;
static_assert(kDepth * kRowBytes <= 65535, "offsets into a panel, its row of zeros included, fit 16 bits");

void Pack(int32_t tokens, int32_t k, const float* x, int64_t ldx, float* panel) {
  for (int32_t p = 0; p < k; ++p)
    for (int32_t i = 0; i < tokens; ++i) panel[p * kStrip + i] = x[i * ldx + p];
}

// `stride` floats from one weight row to the next in acc and from one value of k to the next in the panel.
void MultiplyTokens(const SpmmF32BandArgs& g, int32_t tokens, int32_t stride) {
  for (int32_t group = 0; group < g.groups; ++group)
    for (int32_t r = 0; r < kRows; ++r) {
      const int32_t row = g.order[group * kRows + r];
      float* acc = g.acc + row * stride;
      for (int32_t i = 0; i < tokens && g.bias != nullptr; ++i) acc[i] = g.bias[row];
      for (int64_t s = g.starts[group]; s < g.starts[group + 1]; ++s) {
        const int64_t at = s * kRows + r;
        const float* x = g.panel + g.offsets[at] / kRowBytes * stride;
        for (int32_t i = 0; i < tokens; ++i) acc[i] = __builtin_fmaf(x[i], g.values[at], acc[i]);
      }
    }
}

void Multiply(const SpmmF32BandArgs& g) { MultiplyTokens(g, g.tokens, kStrip); }
void Row(const SpmmF32BandArgs& g) { MultiplyTokens(g, 1, 1); }

void Finish(const SpmmF32FinishArgs& g) {
  for (int32_t i = 0; i < g.m; ++i)
    for (int32_t j = 0; j < g.n; ++j) {
      float y = g.acc[j * kStrip + i];
      if (g.residual != nullptr) y += g.residual[i * g.ldr + j];
      g.c[i * g.ldc + j] = y;
    }
}

}  // namespace

const SpmmF32Kernel& SpmmF32() {
  static constexpr SpmmF32Kernel kernel = {"spmm_f32_4x32_scalar", kRows, kStrip, kDepth, Pack, Multiply, Row, Finish};
  return kernel;
}

}  // namespace tersor::scalar

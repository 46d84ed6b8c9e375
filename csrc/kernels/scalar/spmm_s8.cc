// 4 weight rows by a strip of 64 tokens. Panel: [k / 4][64][4] uint8; a quad meets 64 groups of 4 neighbouring bytes.
// Exact: int32 sums of products of at most 255 * 127.
#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::scalar {
namespace {

constexpr int32_t kRows = 4, kStrip = 64, kDepth = 384;
static_assert(kDepth / 4 * kStrip * 4 <= 65536, "offsets into a panel fit 16 bits");

void Pack(int32_t tokens, int32_t k, const uint8_t* a, int64_t lda, uint8_t* panel) {
  for (int32_t p = 0; p < (k + 3) / 4; ++p)
    for (int32_t i = 0; i < tokens; ++i) std::memcpy(panel + (p * kStrip + i) * 4, a + i * lda + p * 4, 4);
}

void Multiply(const SpmmS8Args& g) {
  for (int32_t group = 0; group < g.groups; ++group)
    for (int32_t r = 0; r < kRows; ++r) {
      int32_t* acc = g.acc + int64_t{g.order[group * kRows + r]} * kStrip;
      if (!g.add) std::memset(acc, 0, kStrip * sizeof *acc);
      for (int64_t s = g.starts[group]; s < g.starts[group + 1]; ++s) {
        const int8_t* w = g.quads + (s * kRows + r) * 4;
        const uint8_t* a = g.panel + g.offsets[s * kRows + r];
        for (int32_t i = 0; i < g.tokens; ++i, a += 4) acc[i] += a[0] * w[0] + a[1] * w[1] + a[2] * w[2] + a[3] * w[3];
      }
    }
}

void Finish(const SpmmS8FinishArgs& g) {
  for (int32_t i = 0; i < g.m; ++i)
    for (int32_t j = 0; j < g.n; ++j) {
      const int32_t sum = g.acc[int64_t{j} * kStrip + i] - g.row_zero[i] * g.col_sum[j];
      float y = static_cast<float>(sum) * (g.row_scale[i] * g.col_scale[j]) + g.bias[j];
      if (g.residual != nullptr) y += g.residual[i * g.ldr + j];
      g.c[i * g.ldc + j] = y;
    }
}

}  // namespace

const SpmmS8Kernel& SpmmS8() {
  static constexpr SpmmS8Kernel kernel = {"spmm_s8_4x64_scalar", kRows, kStrip, kDepth, Pack, Multiply, Finish};
  return kernel;
}

}  // namespace tersor::scalar

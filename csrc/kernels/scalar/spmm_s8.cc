// 4 weight rows by a strip of 64 tokens. Panel: [k / 4][64][4] uint8; a quad meets 64 groups of 4 neighbouring bytes.
// Exact: int32 sums of products of at most 255 * 127.
#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::scalar {
namespace {

constexpr int32_t kRows = 4, kStrip = 64, kDepth = 768;
constexpr int32_t kQuadBytes = kStrip * 4;
static_assert(kDepth / 4 * kQuadBytes <= 65536, "offsets into a panel fit 16 bits");

void Pack(int32_t tokens, int32_t k, const uint8_t* a, int64_t lda, uint8_t* panel) {
  for (int32_t p = 0; p < (k + 3) / 4; ++p)
    for (int32_t i = 0; i < tokens; ++i) std::memcpy(panel + p * kQuadBytes + i * 4, a + i * lda + p * 4, 4);
}

void Scale(const SpmmS8Args& g, int32_t row, const int32_t* acc) {
  for (int32_t i = 0; i < g.tokens; ++i) {
    const int32_t sum = acc[i] - g.row_zero[i] * g.col_sum[row];
    g.y[int64_t{row} * kStrip + i] = static_cast<float>(sum) * (g.row_scale[i] * g.col_scale[row]) + g.bias[row];
  }
}

void Multiply(const SpmmS8Args& g) {
  for (int32_t group = 0; group < g.groups; ++group)
    for (int32_t r = 0; r < kRows; ++r) {
      const int32_t row = g.order[group * kRows + r];
      int32_t acc[kStrip] = {};
      if (g.add) std::memcpy(acc, g.acc + int64_t{row} * kStrip, sizeof acc);
      for (int64_t s = g.starts[group]; s < g.starts[group + 1]; ++s) {
        const int8_t* w = g.quads + (s * kRows + r) * 4;
        const uint8_t* a = g.panel + g.offsets[s * kRows + r];
        for (int32_t i = 0; i < g.tokens; ++i, a += 4) acc[i] += a[0] * w[0] + a[1] * w[1] + a[2] * w[2] + a[3] * w[3];
      }
      if (g.y == nullptr)
        std::memcpy(g.acc + int64_t{row} * kStrip, acc, sizeof acc);
      else
        Scale(g, row, acc);
    }
}

void Finish(const SpmmS8FinishArgs& g) {
  for (int32_t i = 0; i < g.m; ++i)
    for (int32_t j = 0; j < g.n; ++j) {
      float y = g.y[int64_t{j} * kStrip + i];
      if (g.residual != nullptr) y += g.residual[i * g.ldr + j];
      g.c[i * g.ldc + j] = y;
    }
}

constexpr SpmmS8Kernel MakeKernel() {
  SpmmS8Kernel kernel{};
  kernel.id = "spmm_s8_4x64_scalar";
  kernel.rows = kRows;
  kernel.strip = kStrip;
  kernel.depth = kDepth;
  kernel.quad_bytes = kQuadBytes;
  kernel.pack = Pack;
  kernel.multiply = Multiply;
  kernel.finish = Finish;
  return kernel;
}

}  // namespace

const SpmmS8Kernel& SpmmS8() {
  static constexpr SpmmS8Kernel kernel = MakeKernel();
  return kernel;
}

}  // namespace tersor::scalar

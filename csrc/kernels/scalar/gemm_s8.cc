// 4x4 tile, plain C++. Panel: [k][nr] int8. Exact: int32 sums of products that fit in 16 bits.
#include "kernels/kernel_api.h"

namespace tersor::scalar {
namespace {

constexpr int32_t kMr = 4, kNr = 4;

size_t PanelBytes(int32_t k) { return static_cast<size_t>(k) * kNr; }

void PackPanel(int32_t n, int32_t k, const int8_t* w, int64_t ldw, void* panel) {
  int8_t* out = static_cast<int8_t*>(panel);
  for (int32_t p = 0; p < k; ++p)
    for (int32_t j = 0; j < kNr; ++j) *out++ = j < n ? w[j * ldw + p] : int8_t{0};
}

void UnpackPanel(int32_t n, int32_t k, const void* panel, int8_t* w, int64_t ldw) {
  const int8_t* in = static_cast<const int8_t*>(panel);
  for (int32_t p = 0; p < k; ++p)
    for (int32_t j = 0; j < n; ++j) w[j * ldw + p] = in[p * kNr + j];
}

void StoreRow(const GemmS8Args& g, int32_t i, int32_t j0, int32_t live, const int32_t* acc) {
  for (int32_t j = 0; j < live; ++j) {
    const int32_t col = j0 + j;
    if (g.acc != nullptr) {
      g.acc[i * g.ld_acc + col] = acc[j];
      continue;
    }
    const float t = static_cast<float>(acc[j] - g.row_zero[i] * g.col_sum[col]);
    float v = t * (g.row_scale[i] * g.col_scale[col]) + g.bias[col];
    if (g.residual != nullptr) v = v + g.residual[i * g.ldr + col];
    g.c[i * g.ldc + col] = v;
  }
}

void Rows(const GemmS8Args& g) {
  for (int32_t j0 = 0; j0 < g.n; j0 += kNr) {
    const int8_t* b = static_cast<const int8_t*>(g.panel) + PanelBytes(g.k) * static_cast<size_t>(j0 / kNr);
    for (int32_t i = 0; i < g.m; ++i) {
      int32_t acc[kNr] = {};
      for (int32_t p = 0; p < g.k; ++p)
        for (int32_t j = 0; j < kNr; ++j) acc[j] += int32_t{g.a[i * g.lda + p]} * int32_t{b[p * kNr + j]};
      StoreRow(g, i, j0, g.n - j0 < kNr ? g.n - j0 : kNr, acc);
    }
  }
}

}  // namespace

const GemmS8Kernel& GemmS8() {
  static constexpr GemmS8Kernel kernel = {"gemm_s8_4x4_scalar", kMr,  kNr, 1,   PanelBytes, PackPanel,
                                          UnpackPanel,          Rows, kMr, Rows};
  return kernel;
}

}  // namespace tersor::scalar

// 1 row of x by 16 weight rows, plain C++. Exact: int32 sums of products that fit in 16 bits.
#include "kernels/lut4_api.h"

namespace tersor::scalar {
namespace {

constexpr int32_t kRows = kPanelRowsLut4, kStepBytes = kRows * 16;

int32_t PlaceOfRow(int32_t row) { return 4 * (row % 4) + row / 4; }

struct Part {
  const Lut4Panel& panel;
  const uint8_t *table, *codes;
  const float* scale;
  const int32_t* col_sum;

  Part(const Lut4Panel& from, int32_t index) : panel(from), table(from.data) {
    const uint8_t* data = from.data + (from.tables == Lut4Tables::kPerPanel ? kStepBytes : 0) + index * from.part_bytes;
    if (from.tables == Lut4Tables::kPerPart) {
      table = data;
      data += kStepBytes;
    }
    scale = reinterpret_cast<const float*>(data);
    col_sum = reinterpret_cast<const int32_t*>(data + 64);
    codes = data + 128;
  }
  // k: within the part.
  int8_t Value(int32_t row, int32_t k) const {
    const int64_t place = PlaceOfRow(row), lane = k % 16;
    if (panel.tables == Lut4Tables::kWide)
      return static_cast<int8_t>(codes[k / 16 * int64_t{kStepBytes} + place * 16 + lane]);
    const int32_t both = codes[k / kStepLut4 * int64_t{kStepBytes} + place * 16 + lane];
    return static_cast<int8_t>(table[place * 16 + (k % kStepLut4 < 16 ? both & 15 : both >> 4)]);
  }
};

float Element(const Lut4RowsArgs& g, const Lut4Panel& panel, int32_t row, float bias, const float* residual) {
  float y = 0.0f;
  for (int32_t p = 0; p < panel.parts; ++p) {
    const Part part(panel, p);
    const int32_t begin = p * panel.depth, left = panel.k - begin;
    int32_t acc = 0;
    for (int32_t k = 0; k < (left < panel.depth ? left : panel.depth); ++k)
      acc += int32_t{g.a[begin + k]} * part.Value(row, k);
    const float t = static_cast<float>(acc - g.row_zero[0] * part.col_sum[row]);
    const float term = t * (g.row_scale[0] * part.scale[row]);
    if (p > 0)
      y = (term + 0.0f) + y;
    else
      y = residual == nullptr ? term + bias : term + bias + *residual;
  }
  return y;
}

void Rows(const Lut4RowsArgs& g) {
  Lut4Panel panel = g.panel;
  for (int32_t i = 0; i < g.panels; ++i, panel.data += g.panel_bytes) {
    for (int32_t j = 0; j < kRows; ++j) {
      const int32_t column = i * kRows + j;
      g.y[column] = Element(g, panel, j, g.bias[column], g.residual == nullptr ? nullptr : g.residual + column);
    }
  }
}

void Decode(const Lut4Panel& panel, int32_t begin, int32_t count, int8_t* w, int64_t ldw) {
  for (int32_t k = begin; k < begin + count; ++k) {
    const Part part(panel, k / panel.depth);
    for (int32_t j = 0; j < kRows; ++j) w[j * ldw + k - begin] = part.Value(j, k % panel.depth);
  }
}

}  // namespace

const Lut4Kernel& Lut4() {
  static constexpr Lut4Kernel kernel = {"lut4_1x16_scalar", 1, Rows, Decode, nullptr, nullptr};
  return kernel;
}

}  // namespace tersor::scalar

// 1 row of x by 16 weight rows, plain C++. Exact: int32 sums of products that fit in 16 bits.
#include "kernels/lut4_api.h"

namespace tersor::scalar {
namespace {

constexpr int32_t kRows = kPanelRowsLut4, kTableBytes = kRows * 16, kPlaneBytes = kRows * kStepLut4 / 8;

int32_t PlaceOfRow(int32_t row) { return 4 * (row % 4) + row / 4; }

struct Part {
  const Lut4Panel& panel;
  const uint8_t *table, *codes;
  const float* scale;
  const uint8_t* col_sums;

  Part(const Lut4Panel& from, int32_t index) : panel(from), table(from.data) {
    const int64_t tables = int64_t{kTableBytes} << from.high, in_unit = from.in_unit, at = index % in_unit;
    const uint8_t* data =
        from.data + (from.tables == Lut4Tables::kPerPanel ? tables : 0) + index / in_unit * from.unit_bytes;
    if (from.tables == Lut4Tables::kPerPart) {
      table = data + at * tables;
      data += in_unit * tables;
    }
    scale = reinterpret_cast<const float*>(data) + at * kRows;
    col_sums = data + in_unit * 64 + at * 32;
    codes = data + in_unit * 64 + 64 + at * (from.depth / kStepLut4) * int64_t{from.step_bytes};
  }
  int32_t ColSum(int32_t row) const {
    return panel.in_unit == 2 ? reinterpret_cast<const int16_t*>(col_sums)[row]
                              : reinterpret_cast<const int32_t*>(col_sums)[row];
  }
  // k: within the part.
  int8_t Value(int32_t row, int32_t k) const {
    const int64_t place = PlaceOfRow(row), lane = k % 16, half = k % kStepLut4 / 16;
    const uint8_t* step = codes + k / kStepLut4 * int64_t{panel.step_bytes};
    if (panel.tables == Lut4Tables::kWide) return static_cast<int8_t>(step[half * kTableBytes + place * 16 + lane]);
    int32_t code = step[place * 16 + lane] >> 4 * half & 15, book = 0;
    for (int32_t h = 0; h < panel.high; ++h)
      book |= (step[kTableBytes + h * kPlaneBytes + half * kPlaneBytes / 2 + place * 2 + lane / 8] >> lane % 8 & 1)
              << h;
    return static_cast<int8_t>(table[book * kTableBytes + place * 16 + code]);
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
    const float t = static_cast<float>(acc - g.row_zero[0] * part.ColSum(row));
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

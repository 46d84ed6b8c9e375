#include <algorithm>
#include <cstring>

#include "ops/linear_lut4_worker.h"

namespace tersor {
namespace {

constexpr int32_t kSlice = 256;  // values of k that go through rows at a time: a multiple of every kr and of 32

}  // namespace

DecodedBand::DecodedBand(const PackedViewLut4& weight, const Selection& kernels)
    : weight_(weight),
      gemm_(*kernels.gemm_s8),
      lut4_(*kernels.lut4),
      width_(Lut4Bands(weight, gemm_).width),
      panel_bytes_(gemm_.panel_bytes(static_cast<int32_t>(weight.spec.k))) {}

size_t DecodedBand::ScratchBytes() const {
  const size_t width = static_cast<size_t>(width_), sums = static_cast<size_t>(weight_.layout.parts) * width;
  return Scratch::Padded<char>(width / static_cast<size_t>(gemm_.nr) * panel_bytes_) + Scratch::Padded<float>(sums) +
         Scratch::Padded<int32_t>(sums) + Scratch::Padded<int8_t>(width * kSlice);
}

void DecodedBand::Take(Scratch& scratch) {
  const size_t width = static_cast<size_t>(width_), sums = static_cast<size_t>(weight_.layout.parts) * width;
  panels_ = scratch.Take<char>(width / static_cast<size_t>(gemm_.nr) * panel_bytes_);
  scale_ = scratch.Take<float>(sums);
  col_sum_ = scratch.Take<int32_t>(sums);
  rows_ = scratch.Take<int8_t>(width * kSlice);
}

// The panels of every gemm_s8 kernel lie in the order of k, so that a slice of k is a piece of them.
void DecodedBand::DecodeThroughRows(const Lut4Panel* halves, int64_t count) {
  const int32_t k = static_cast<int32_t>(weight_.spec.k);
  for (int32_t begin = 0; begin < k; begin += kSlice) {
    const int32_t live = std::min(kSlice, k - begin);
    const int32_t whole = (live + kStepLut4 - 1) / kStepLut4 * kStepLut4;
    for (int64_t i = 0; i < count; ++i)
      lut4_.decode(halves[i], begin, whole, rows_ + i * kPanelRowsLut4 * kSlice, kSlice);
    for (int64_t column = 0; column < count * kPanelRowsLut4; column += gemm_.nr) {
      const int64_t columns = std::min<int64_t>(gemm_.nr, count * kPanelRowsLut4 - column);
      char* panel = panels_ + static_cast<size_t>(column / gemm_.nr) * panel_bytes_;
      gemm_.pack_panel(static_cast<int32_t>(columns), live, rows_ + column * kSlice, kSlice,
                       panel + (begin == 0 ? 0 : gemm_.panel_bytes(begin)));
    }
  }
}

void DecodedBand::Decode(int64_t band) {
  const int64_t first = band * (width_ / kPanelRowsLut4);
  const int64_t count = std::min(width_ / kPanelRowsLut4, weight_.layout.panels - first);
  Lut4Panel panels[4];
  for (int64_t i = 0; i < count; ++i) panels[i] = weight_.Args(first + i);
  if (lut4_.panel_of != nullptr && std::strcmp(lut4_.panel_of, gemm_.id) == 0) {
    constexpr int64_t kQuad = 4;
    for (int64_t i = 0; i < count; ++i) lut4_.decode_panel(panels[i], panels_ + i * kPanelRowsLut4 * kQuad);
  } else {
    DecodeThroughRows(panels, count);
  }
  for (int64_t part = 0; part < weight_.layout.parts; ++part) {
    float* scale = scale_ + part * width_;
    int32_t* col_sum = col_sum_ + part * width_;
    std::fill_n(scale, width_, 0.0f);
    std::fill_n(col_sum, width_, 0);
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(weight_.Scale(first + i, part), kPanelRowsLut4, scale + i * kPanelRowsLut4);
      for (int64_t row = 0; row < kPanelRowsLut4; ++row)
        col_sum[i * kPanelRowsLut4 + row] = weight_.ColSum(first + i, part, row);
    }
  }
}

const char* DecodedBand::Panel(int64_t column, int64_t part) const {
  const size_t before = part == 0 ? 0 : gemm_.panel_bytes(static_cast<int32_t>(part * weight_.layout.depth));
  return panels_ + static_cast<size_t>(column / gemm_.nr) * panel_bytes_ + before;
}

int32_t DecodedBand::Depth(int64_t part) const {
  return static_cast<int32_t>(std::min<int64_t>(weight_.layout.depth, weight_.spec.k - part * weight_.layout.depth));
}

}  // namespace tersor

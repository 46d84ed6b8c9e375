// The packed weight of linear_lut4: one relocatable block of bytes, the same for every instruction set.
//
//   header | input_scale f32 [k] | table i8 [table_rows][table_groups][2^bits] | panels [ceil(n / 16)]
//
// Every part starts at a multiple of 64 bytes; kernel_api.h has the panel.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/registry.h"
#include "kernels/lut4_api.h"
#include "tersor/linear_lut4.h"

namespace tersor {

struct PackedHeaderLut4 {
  char magic[8];
  uint64_t bytes;
  Lut4Spec spec;
  uint64_t smoothed;
  char zeros[56];
};
static_assert(sizeof(PackedHeaderLut4) == 128, "two cache lines");

struct PackedLayoutLut4 {
  int64_t panels, parts;
  int32_t depth;    // values of k in a part
  int32_t in_unit;  // parts in a unit
  int32_t high;     // bits of a code above the low four, unless the weight is wide
  Lut4Tables tables;
  // From the start of the block, of a panel, of a unit.
  size_t input_scale_at, table_at, panels_at, unit_at, scale_at, col_sum_at, codes_at;
  size_t step_bytes, unit_bytes, panel_bytes, total;
};
PackedLayoutLut4 LayoutLut4(const Lut4Spec& spec);

// A checked view; the pointers lie inside the block.
struct PackedViewLut4 {
  Lut4Spec spec;
  PackedLayoutLut4 layout;
  const float* input_scale;  // null when the weight is not smoothed
  int8_t* table;
  uint8_t* panels;

  uint8_t* Panel(int64_t panel) const { return panels + static_cast<size_t>(panel) * layout.panel_bytes; }
  uint8_t* Unit(int64_t panel, int64_t part) const {
    return Panel(panel) + layout.unit_at + static_cast<size_t>(part / layout.in_unit) * layout.unit_bytes;
  }
  float* Scale(int64_t panel, int64_t part) const {
    return reinterpret_cast<float*>(Unit(panel, part) + layout.scale_at) + part % layout.in_unit * kPanelRowsLut4;
  }
  int32_t ColSum(int64_t panel, int64_t part, int64_t row) const;
  void SetColSum(int64_t panel, int64_t part, int64_t row, int32_t sum) const;
  uint8_t* Codes(int64_t panel, int64_t part) const {
    const size_t before = static_cast<size_t>(part % layout.in_unit * (layout.depth / kStepLut4)) * layout.step_bytes;
    return Unit(panel, part) + layout.codes_at + before;
  }
  // The tables of one panel, or of a part where each has its own.
  uint8_t* Tables(int64_t panel, int64_t part) const {
    const size_t bytes = kPanelRowsLut4 * size_t{16} << layout.high;
    return layout.tables == Lut4Tables::kPerPart
               ? Unit(panel, part) + static_cast<size_t>(part % layout.in_unit) * bytes
               : Panel(panel);
  }
  Lut4Panel Args(int64_t panel) const;
};

// Throws Error when the block is not a packed weight of this kind or is truncated.
PackedViewLut4 ViewPackedLut4(const void* packed, size_t packed_bytes);

}  // namespace tersor

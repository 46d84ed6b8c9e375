// The part of kernel_api.h that is about code book weights, under its rules.
#pragma once
#include "kernels/kernel_api.h"

namespace tersor {

// Weights as codes of a table (docs/kernels.md, "Code books"), 16 weight rows to a panel, in parts of `depth` values of
// k, a multiple of kStepLut4, and `in_unit` parts to a unit:
//   a panel: tables, when they serve all parts | units
//   a unit:  tables of each part, when each has its own | scale f32 [in_unit][16] | col_sum [in_unit][16] | codes of
//            each part
// col_sum is i32 where a unit is one part, and i16 where it is two, whose last may be missing in the last unit.
// Tables are i8 [2^high][16 places][16]. Codes lie in steps of 32 values of k: [16 places][16 bytes], byte i of a place
// has the four low bits of the code of value i in its low half and those of value 16 + i in its high half; then the
// `high` bits above them, each as bits [2 halves of the step][16 places][16 values]. A code of more than four bits is
// an index into the tables one after another. Wide weights have no tables, and [2][16 places][16] int8 values for a
// step. Place p belongs to weight row 4 (p % 4) + p / 4 of the panel; scale, col_sum and results are in the order of
// rows.
constexpr int32_t kPanelRowsLut4 = 16, kStepLut4 = 32;
enum class Lut4Tables : int32_t { kWide, kPerPanel, kPerPart };
struct Lut4Panel {
  int32_t k, depth, parts;
  int32_t in_unit;     // 1 or 2
  int32_t high;        // 0 to kMaxHighLut4; 0 where the weight is wide
  int32_t step_bytes;  // of codes
  Lut4Tables tables;
  int64_t unit_bytes;  // from one unit to the next
  const uint8_t* data;
};
constexpr int32_t kMaxHighLut4 = 1;

struct Lut4RowsArgs {
  int32_t m, panels;  // m <= max_m
  const uint8_t* a;   // [m][round_up(k, 32)], row stride lda; zeros from k on
  int64_t lda;
  Lut4Panel panel;          // the first one
  int64_t panel_bytes;      // to the next one
  const float* row_scale;   // [m]
  const int32_t* row_zero;  // [m]
  const float* bias;        // [panels * 16], never null
  const float* residual;    // [m][panels * 16], row stride ldy, or null
  float* y;                 // [m][panels * 16], row stride ldy
  int64_t ldy;
  // t = acc - row_zero * col_sum, exactly, and term = float(t) * (row_scale * scale), part by part:
  // y = term + bias (+ residual), then y = (term + 0) + y: each operation rounded once.
};

struct Lut4Kernel {
  const char* id;  // lut4_<max_m>x16_<isa>
  int32_t max_m;
  void (*rows)(const Lut4RowsArgs& args);  // few rows of a at the speed of memory
  // The int8 values of k in [begin, begin + count), multiples of 32, to w [16][count], row stride ldw, in the order of
  // rows. What lies beyond the panel's k is any value.
  void (*decode)(const Lut4Panel& panel, int32_t begin, int32_t count, int8_t* w, int64_t ldw);
  // The same for all of k straight to a panel of the gemm_s8 kernel `panel_of`, 16 columns of it from `to` on; or null.
  const char* panel_of;
  void (*decode_panel)(const Lut4Panel& panel, void* to);
};

}  // namespace tersor

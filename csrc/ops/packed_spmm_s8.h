// The sparse packed weight: one relocatable block of bytes that the CPU it was packed on reads as is.
//
//   header | input_scale f32 [k] | scale f32 [n_pad] | col_sum i32 [n_pad] | starts i64 [blocks * groups + 1] |
//   order u8 [blocks][n_pad] | columns u16 [blocks][depth] | quads i8 [steps][rows][4] | offsets u16 [steps][rows] |
//   the form for few rows (packed_spmm_s8_rows.h)
//
// A block is `depth` values of k, a band kBandRowsS8 weight rows, a group `rows` of them. In each block the rows of a
// band are ordered by their number of steps, so that the rows of a group have almost equally many; `order` says which
// rows they are, within the band. A group has as many steps as its longest row; the shorter ones are filled with zero
// quads. `columns`, absent in the form of plain quads, says which value of k is at which place of a block; the form of
// columns has 4 offsets a quad. Every part starts at a multiple of 64 bytes.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/kernel_api.h"
#include "ops/packed_spmm_s8_rows.h"
#include "ops/plan_spmm_s8.h"

namespace tersor {

struct PackedHeaderSpmmS8 {
  char magic[8];
  uint64_t bytes;
  int64_t n, k, quads, steps;
  uint64_t smoothed;    // 1: x is multiplied by input_scale before it is quantised
  uint64_t form;        // SparseFormS8
  uint64_t rows_bytes;  // of the section for few rows, which comes last; 0: there is none
  char kernel_id[56];   // zero padded
};
static_assert(sizeof(PackedHeaderSpmmS8) == 128, "two cache lines");

struct PackedLayoutSpmmS8 {
  int64_t n_pad, blocks, depth, bands, groups;  // groups: of all bands
  size_t input_scale_at, scale_at, col_sum_at, starts_at, order_at, columns_at, quads_at, offsets_at, total;
};
PackedLayoutSpmmS8 LayoutSpmmS8(const SpmmS8Kernel& kernel, SparseFormS8 form, int64_t n, int64_t k, int64_t steps);

// A checked view; the pointers lie inside the block, and so does everything that `starts`, `order` and `columns` point
// at.
struct PackedViewSpmmS8 {
  const SpmmS8Kernel* kernel;
  SparseFormS8 form;
  int64_t n, k, quads_count, steps;
  PackedLayoutSpmmS8 layout;
  const float* input_scale;  // null when the weight is not smoothed
  float* scale;
  int32_t* col_sum;
  int64_t* starts;
  uint8_t* order;
  uint16_t* columns;  // null in the form of plain quads
  int8_t* quads;
  uint16_t* offsets;
  PackedViewSpmmS8Rows rows;

  int32_t BlockDepth(int64_t block) const;
  int32_t BandRows(int64_t band) const;  // padded
  // One band of one block; the tokens, panel and sums are the caller's.
  SpmmS8Args Band(int64_t block, int64_t band) const;
  // a: the rows of x, quantised, from this block of k on (SpmmS8Kernel::pack). packed and panel are kPanelBytesSpmmS8;
  // `packed` is used by the arranged forms only.
  void PackPanel(int64_t block, int64_t tokens, const uint8_t* a, int64_t lda, uint8_t* packed, uint8_t* panel) const;
  void Multiply(const SpmmS8Args& args) const;
};

// Throws Error when the block is not a sparse packed weight, is truncated or damaged, or needs a kernel that this CPU
// cannot run. Offsets are not looked at: a panel is readable at any of them (kPanelBytesSpmmS8).
PackedViewSpmmS8 ViewPackedSpmmS8(const void* packed, size_t packed_bytes);

// A panel, wherever a 16-bit offset points: one strip of quads begins there.
constexpr size_t kPanelBytesSpmmS8 = 65536 + 1024;

}  // namespace tersor

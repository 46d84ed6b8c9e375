// The sparse float packed weight: one relocatable block of bytes that the CPU it was packed on reads as is.
//
//   header | starts i64 [blocks * groups + 1] | order u8 [blocks][n_pad] | values f32 [steps][rows] |
//   offsets u16 [steps][rows]
//
// A block is `depth` values of k, a band kBandRowsF32 weight rows, a group `rows` of them. In each block the rows of a
// band are ordered by their number of non-zeros, so that the rows of a group have almost equally many; `order` says
// which rows they are, within the band. A group has as many steps as its longest row; the shorter ones are filled up
// with -0 at the offset of the panel's row of zeros. Every part starts at a multiple of 64 bytes.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/kernel_api.h"

namespace tersor {

struct PackedHeaderSpmmF32 {
  char magic[8];
  uint64_t bytes;
  int64_t n, k, nnz, steps;
  char kernel_id[80];  // zero padded
};
static_assert(sizeof(PackedHeaderSpmmF32) == 128, "two cache lines");

struct PackedLayoutSpmmF32 {
  int64_t n_pad, blocks, bands, groups;  // groups: of all bands
  size_t starts_at, order_at, values_at, offsets_at, total;
};
PackedLayoutSpmmF32 LayoutSpmmF32(const SpmmF32Kernel& kernel, int64_t n, int64_t k, int64_t steps);

// A checked view; the pointers lie inside the block, and so does everything that `starts` and `order` point at.
struct PackedViewSpmmF32 {
  const SpmmF32Kernel* kernel;
  int64_t n, k, nnz, steps;
  PackedLayoutSpmmF32 layout;
  int64_t* starts;
  uint8_t* order;
  float* values;
  uint16_t* offsets;

  int32_t BlockDepth(int64_t block) const;
  int32_t BandRows(int64_t band) const;  // padded
  // One band of one block; tokens, panel, bias and sums are the caller's.
  SpmmF32BandArgs Band(int64_t block, int64_t band) const;
};

// Throws Error when the block is not a sparse float packed weight, is truncated or damaged, or needs a kernel that this
// CPU cannot run. Offsets are not looked at: a panel is readable at any of them.
PackedViewSpmmF32 ViewPackedSpmmF32(const void* packed, size_t packed_bytes);

// A panel, wherever a 16-bit offset points: one strip begins there.
constexpr size_t kPanelBytesSpmmF32 = 65536 + 1024;

}  // namespace tersor

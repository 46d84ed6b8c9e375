// The packed weight: one relocatable block of bytes that the CPU it was packed on reads as is.
//
//   header | input_scale f32 [k] | scale f32 [n_pad] | col_sum i32 [chunks][n_pad] |
//   panels [chunks][n_pad / nr][panel_bytes]
//
// n_pad = round_up(n, nr); a chunk is at most kMaxDepthS8 deep, so that int32 sums stay exact. Every part
// starts at a multiple of 64 bytes.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/kernel_api.h"

namespace tersor {

// For the extents of a kernel, which are powers of two: a shift and a mask instead of a division.
constexpr int64_t RoundUp(int64_t value, int64_t power_of_two) { return (value + power_of_two - 1) & -power_of_two; }

struct PackedHeaderS8 {
  char magic[8];
  uint64_t bytes;
  int64_t n, k;
  uint64_t smoothed;   // 1: x is multiplied by input_scale before it is quantised
  char kernel_id[88];  // zero padded
};
static_assert(sizeof(PackedHeaderS8) == 128, "two cache lines");

struct PackedLayoutS8 {
  int64_t n_pad, chunks;
  size_t input_scale_at, scale_at, col_sum_at, panels_at, total;
};
PackedLayoutS8 LayoutS8(const GemmS8Kernel& kernel, int64_t n, int64_t k);

// A checked view; the pointers lie inside the block.
struct PackedViewS8 {
  const GemmS8Kernel* kernel;
  int64_t n, k;
  PackedLayoutS8 layout;
  const float* input_scale;  // null when the weight is not smoothed
  float* scale;
  int32_t* col_sum;
  char* panels;

  int32_t ChunkDepth(int64_t chunk) const;
  const char* Panel(int64_t chunk, int64_t panel) const;
};

// Throws Error when the block is not a packed weight, is truncated, or needs a kernel that this CPU cannot run.
PackedViewS8 ViewPackedS8(const void* packed, size_t packed_bytes);

}  // namespace tersor

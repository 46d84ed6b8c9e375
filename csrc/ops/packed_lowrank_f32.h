// The packed float factors: one relocatable block of bytes that the CPU it was packed on reads as is.
//
//   header | down panels f32 [rank_pad / nr][k][nr] | up panels f32 [n_pad / nr][rank][nr]
//
// rank_pad and n_pad are rounded up to nr, the columns beyond are 0. Every part starts at a multiple of 64 bytes.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/kernel_api.h"

namespace tersor {

struct PackedHeaderLowRankF32 {
  char magic[8];
  uint64_t bytes;
  int64_t n, k, rank;
  char kernel_id[88];  // zero padded
};
static_assert(sizeof(PackedHeaderLowRankF32) == 128, "two cache lines");

// A checked view; the pointers lie inside the block.
struct PackedViewLowRankF32 {
  const GemmF32Kernel* kernel;
  int64_t n, k, rank;
  float *down, *up;
  size_t total;

  int64_t down_panels() const { return (rank + kernel->nr - 1) / kernel->nr; }
  int64_t up_panels() const { return (n + kernel->nr - 1) / kernel->nr; }
};

// Throws Error when the block is not such a packed weight, is truncated, or needs a kernel that this CPU cannot run.
PackedViewLowRankF32 ViewPackedLowRankF32(const void* packed, size_t packed_bytes);

}  // namespace tersor

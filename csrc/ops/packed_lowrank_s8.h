// The packed int8 factors: one relocatable block of bytes that the CPU it was packed on reads as is.
//
//   header | down | up | dense, where there is one
//
// The three are packed weights of linear_s8 (ops/packed_s8.h), each with its own header; each begins at a multiple of
// 64 bytes. `down` holds the input scale.
#pragma once
#include <cstddef>
#include <cstdint>

#include "ops/packed_s8.h"

namespace tersor {

struct PackedHeaderLowRankS8 {
  char magic[8];
  uint64_t bytes;
  int64_t n, k, rank;
  uint64_t down_bytes, up_bytes, dense_bytes;  // dense_bytes 0: there is none
  char padding[64];
};
static_assert(sizeof(PackedHeaderLowRankS8) == 128, "two cache lines");

// A checked view; the pointers lie inside the block.
struct PackedViewLowRankS8 {
  const GemmS8Kernel* kernel;  // of all parts
  int64_t n, k, rank;
  PackedViewS8 down, up, dense;
  bool has_dense;

  int64_t down_panels() const { return down.layout.n_pad / kernel->nr; }
  int64_t up_panels() const { return up.layout.n_pad / kernel->nr; }
};

// Throws Error when the block is not such a packed weight, is truncated, or needs a kernel that this CPU cannot run.
PackedViewLowRankS8 ViewPackedLowRankS8(const void* packed, size_t packed_bytes);

}  // namespace tersor

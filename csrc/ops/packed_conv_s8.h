// The packed filter of a convolution: one relocatable block.
//
//   header | of a depthwise filter: scale f32 [c], col_sum i32 [c], the depthwise kernel's weights
//          | else: `groups` packed matrices (packed_s8.h), [out / groups][depth] each, `group_bytes` apart
//
// The depth of a row runs over (kernel_h, kernel_w, in_channels / groups). Every part starts at a multiple of 64 bytes.
#pragma once
#include <cstddef>
#include <cstdint>

#include "ops/packed_s8.h"
#include "tersor/conv_s8.h"

namespace tersor {

// Throws Error, beginning with the op's name, unless the shape has a meaning.
void CheckConvShape(const char* op, const ConvShape& shape);

struct PackedConvView {
  ConvShape shape;
  const DepthwiseS8Kernel* depthwise;  // null: matrices
  float* scale;                        // of a depthwise filter
  int32_t* col_sum;                    // the same
  char* weights;                       // of either form
  size_t group_bytes;

  PackedViewS8 Group(int64_t group) const;
};

// Throws Error when the block is not a packed filter, is truncated, or needs a kernel that this CPU cannot run.
PackedConvView ViewPackedConv(const void* packed, size_t packed_bytes);

}  // namespace tersor

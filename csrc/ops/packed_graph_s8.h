// The packed graph: one relocatable block.
//
//   header | nodes | per convolution: bias f32 [out_channels], packed filter (packed_conv_s8.h)
//
// Every part starts at a multiple of 64 bytes.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tersor/graph_s8.h"

namespace tersor {

struct PackedGraphHeader {
  char magic[8];
  uint64_t bytes;
  int64_t channels, nodes;
  Quantized input;
};

struct PackedGraphNode {
  int32_t kind, input, other, activation, pooling, whole;
  Quantized as;
  ConvShape shape;
  uint64_t bias_at, packed_at, packed_bytes;  // of a convolution
};

struct PackedGraphView {
  const char* base;
  const PackedGraphHeader* header;
  const PackedGraphNode* node;

  int64_t nodes() const { return header->nodes; }
  const float* Bias(int64_t i) const { return reinterpret_cast<const float*>(base + node[i].bias_at); }
};

// Throws Error when the block is not a packed graph or is truncated.
PackedGraphView ViewPackedGraph(const void* packed, size_t packed_bytes);

}  // namespace tersor

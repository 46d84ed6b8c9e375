// The packed weights of one direction of a recurrent layer:
//   header | bias f32 [2][gates * hidden], of the input and of the state | packed_s8 of the input | packed_s8 of the
//   state
// Every part starts at a multiple of 64 bytes.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tersor/recurrent_s8.h"

namespace tersor {

struct PackedHeaderRecurrent {
  char magic[8];
  uint64_t bytes, cell;
  int64_t input, hidden;
  uint64_t bias, input_bytes, hidden_bytes;
};
static_assert(sizeof(PackedHeaderRecurrent) == 64, "a cache line");

struct PackedViewRecurrent {
  RecurrentSpec spec;
  int64_t width;  // gates * hidden
  float *input_bias, *hidden_bias;
  char *input, *hidden;
  size_t input_bytes, hidden_bytes, bytes;
};
// Throws Error when the bytes do not begin with such a block.
PackedViewRecurrent ViewPackedRecurrent(const void* packed, size_t packed_bytes);

}  // namespace tersor

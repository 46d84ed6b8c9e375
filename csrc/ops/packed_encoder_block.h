// The packed encoder block: one relocatable block of bytes.
//
//   header | bias f32 [n] of each product | gamma, beta f32 [hidden] of LN1 and of LN2 | the packed weight of each
//   product
//
// Where each part begins follows from the sizes in the header; every part starts at a multiple of 64 bytes.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tersor/encoder_block.h"

namespace tersor {

struct PackedHeaderEncoderBlock {
  char magic[8];
  uint64_t bytes;
  int64_t hidden, heads, head_dim, ffn;
  uint64_t norm_first, activation;
  float eps[2];
  float scale;
  uint32_t zero;
  uint64_t kind[kEncoderProducts];
  uint64_t weight_bytes[kEncoderProducts];
  char padding[48];
};
static_assert(sizeof(PackedHeaderEncoderBlock) == 192, "three cache lines");

struct PackedLayoutEncoderBlock {
  int64_t n[kEncoderProducts], k[kEncoderProducts];
  size_t bias_at[kEncoderProducts], gamma_at[2], beta_at[2], weight_at[kEncoderProducts], total;
};

// A checked view: the pointers lie inside the block, and the packed weights have passed their own checks.
struct PackedViewEncoderBlock {
  EncoderBlockConfig config;
  EncoderWeightKind kind[kEncoderProducts];
  const void* weight[kEncoderProducts];
  size_t weight_bytes[kEncoderProducts];
  const float* bias[kEncoderProducts];
  const float *gamma[2], *beta[2];

  int64_t width() const { return config.heads * config.head_dim; }
};

// Throws Error when the block is not a packed encoder block, is truncated, or its weights have other shapes.
PackedViewEncoderBlock ViewPackedEncoderBlock(const void* packed, size_t packed_bytes);

}  // namespace tersor

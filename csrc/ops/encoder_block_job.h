// What the tasks of one encoder block call share.
#pragma once
#include <atomic>
#include <cstdint>

#include "core/registry.h"
#include "ops/packed_encoder_block.h"
#include "ops/range.h"
#include "tersor/encoder_block.h"

namespace tersor {

// Sequences go through the block in groups whose Q, K and V fit the scratch memory; tokens are the real ones, counted
// through all sequences.
struct EncoderBlockJob {
  const EncoderBlockArgs& args;
  const PackedViewEncoderBlock& block;
  const Selection& kernels;
  const int32_t* position;  // [real tokens]: index into [batch * tokens]
  const int64_t* start;     // [batch + 1]: the first real token of each sequence

  Range sequences;      // of the group
  int16_t* qkv;         // [tokens of the group][ld_qkv]: Q, K and V
  int64_t ld_qkv;       // at least 3 * width + 48; what follows the width is zeros
  float* q_scale;       // [tokens of the group], times the attention scale and log2(e)
  float* kv_scale[2];   // [tokens of the group], of K and of V
  int64_t* panel_at;    // [batch]: where the panels of a sequence begin in `panels`; -1: whoever needs them packs them
  int16_t* panels;      // of the group: keys and values of all heads, block by block
  int64_t panel_units;  // heads and blocks that have panels
  int32_t tasks;
  std::atomic<bool> out_of_memory{false};

  Range rows() const { return {start[sequences.begin], start[sequences.end]}; }
  int16_t* QkvOf(int64_t token) const { return qkv + (token - start[sequences.begin]) * ld_qkv; }
  int64_t depth16() const { return (block.config.head_dim + 15) / 16 * 16; }
  int64_t blocks_of(int64_t sequence) const {
    return (start[sequence + 1] - start[sequence] + kAttentionKeys - 1) / kAttentionKeys;
  }
  // 13 bits and a sign, 12 for deep heads: sums over the depth stay in int32.
  int32_t qk_limit() const { return block.config.head_dim <= 128 ? 4095 : 2047; }
};

}  // namespace tersor

// Attention of rows of one sequence, all heads (docs/encoder.md, "Attention").
#pragma once
#include <cstdint>

#include "core/scratch.h"
#include "ops/encoder_block_job.h"

namespace tersor {

class EncoderAttention {
 public:
  // At most `rows` query rows at a time.
  EncoderAttention(const EncoderBlockJob& job, int64_t rows);
  size_t ScratchBytes() const;
  void Take(Scratch& scratch);
  // Tokens `queries`, all of `sequence`, into out [queries][width], row stride ld_out at least width + 16: what lies
  // beyond the width is written too.
  void Run(int64_t sequence, Range queries, float* out, int64_t ld_out);

  // Packs the keys and values of one head and block of a sequence that has panels.
  static void PackShared(const EncoderBlockJob& job, int64_t sequence, int64_t block, int64_t head);

 private:
  void PrepareKeys(Range keys);
  void RunBlock(int64_t sequence, int64_t head, Range keys, int64_t block, Range queries, float* out, int64_t ld_out);
  const float* GatherBias(int64_t head, Range keys, Range queries);

  const EncoderBlockJob& job_;
  const AttentionKernel& kernel_;
  const int64_t rows_, depth_, width_, blocks_;
  size_t key_panel_, value_panel_;  // int16 values
  int16_t *keys_ = nullptr, *values_ = nullptr;
  float* key_scale_ = nullptr;             // [blocks][kAttentionKeys]
  float* share_ = nullptr;                 // the same
  float* unit_ = nullptr;                  // [blocks]
  float *max_ = nullptr, *sum_ = nullptr;  // [rows]
  float* bias_ = nullptr;                  // [rows][kAttentionKeys], where there is a bias
};

}  // namespace tersor

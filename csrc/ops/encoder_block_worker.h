// One thread's share of an encoder block call, in two stages with a barrier between them: Q, K and V of its rows; then
// all the rest of its rows.
#pragma once
#include <cstdint>

#include "core/scratch.h"
#include "ops/encoder_attention.h"
#include "ops/encoder_block_job.h"

namespace tersor {

class EncoderBlockWorker {
 public:
  EncoderBlockWorker(const EncoderBlockJob& job, bool timed);
  size_t ScratchBytes() const;
  void Take(Scratch& scratch);
  void ProjectQkv(Range rows);
  // Heads and blocks of the sequences that have panels, counted through all of them.
  void PackPanels(Range units);
  void Finish(Range rows);

 private:
  class Timer;
  struct Rows {
    const float* data;
    int64_t ld;
  };

  Rows Input(Range rows);
  void QuantizeQkv(Range rows);
  void ProjectStrip(Range rows);
  void Fetch(Range rows);
  void FinishStrip(Range rows);
  void Attend(Range rows);
  void Multiply(int product, int64_t rows, Rows x, Rows residual, Activation activation, float* y);
  void Normalize(int norm, int64_t rows, Rows x, float* y);
  void WriteOutput(Range rows, const float* y);

  const EncoderBlockJob& job_;
  const EncoderBlockArgs& args_;
  const PackedViewEncoderBlock& block_;
  Selection kernels_;  // of the products: what the activation gives is quantised at once
  const int64_t hidden_, width_, ffn_, strip_, ld_, ld_wide_, ld_context_;
  EncoderAttention attention_;
  double* const seconds_;
  int64_t sequence_ = 0;       // that of the next row
  float* input_ = nullptr;     // [strip][ld], rows of x as floats
  float* normed_ = nullptr;    // [strip][ld]
  float* context_ = nullptr;   // [strip][ld_context]
  float* attended_ = nullptr;  // [strip][ld]
  float* wide_ = nullptr;      // [strip][ld_wide]
};

}  // namespace tersor

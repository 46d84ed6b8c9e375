// One thread's share of a linear_s8 call.
#pragma once
#include <atomic>
#include <cstdint>

#include "core/registry.h"
#include "core/scratch.h"
#include "ops/input_rows.h"
#include "ops/packed_s8.h"
#include "ops/range.h"
#include "tersor/linear_s8.h"

namespace tersor {

struct LinearS8Job {
  const LinearS8Args& args;
  const PackedViewS8& weight;
  const Selection& kernels;
  int32_t tasks = 1;
  bool by_rows = false;
  std::atomic<bool> out_of_memory{false};
};

// LinearS8 with a choice of kernels; the packed weight names its own.
void LinearS8With(const Selection& kernels, const LinearS8Args& args, const Executor& executor);

// Quantises a block of its rows, calls the tiles for its columns, finishes their output.
class LinearS8Worker {
 public:
  LinearS8Worker(const LinearS8Job& job, Range rows, Range columns);
  size_t ScratchBytes() const;
  void Run(Scratch& scratch);

 private:
  bool narrow() const { return args_.dtype != DType::kF32; }

  void Take(Scratch& scratch);
  void Quantize(Range rows) { input_.Quantize(rows, {q_, lda_, k_pad_, row_scale_, row_zero_}, row_f32_); }
  void RunBlock(Range block);
  void Compute(int64_t block_begin, Range rows, Range columns);
  void Finish(const GemmS8Args& g, char* y);

  const LinearS8Job& job_;
  const LinearS8Args& args_;
  const PackedViewS8& weight_;
  const GemmS8Kernel& kernel_;
  const InputRows input_;
  const Range rows_, columns_;
  const bool few_;  // the kernel's path for few rows takes them all at once
  int64_t k_pad_, lda_, padded_columns_, tiles_ = 1, blocks_ = 1, block_rows_, out_rows_, out_columns_;
  bool pads_bias_;
  uint8_t* q_ = nullptr;        // [block_rows][lda]
  float* row_scale_ = nullptr;  // [block_rows]
  int32_t* row_zero_ = nullptr;
  float* bias_ = nullptr;      // [padded_columns], when the caller's bias cannot be read in place
  float* zeros_ = nullptr;     // [padded_columns], for the chunks after the first
  float* row_f32_ = nullptr;   // [k], 16-bit or smoothed inputs only
  float* out_ = nullptr;       // [out_rows][out_columns], 16-bit outputs only
  float* residual_ = nullptr;  // the same, when there is one
  Range ahead_ = {0, 0};       // the bytes of the next panel that the next tile fetches
};

}  // namespace tersor

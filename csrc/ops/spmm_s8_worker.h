// One thread's share of a spmm_s8 call.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "core/registry.h"
#include "core/scratch.h"
#include "ops/input_rows.h"
#include "ops/packed_spmm_s8.h"
#include "ops/range.h"

namespace tersor {

struct SpmmS8Job {
  const LinearS8Args& args;
  const PackedViewSpmmS8& weight;
  const Selection& kernels;
  int32_t tasks = 1;
  bool by_rows = false;
  std::atomic<bool> out_of_memory{false};
};

// SpmmS8 with a choice of kernels; the packed weight names its own.
void SpmmS8With(const Selection& kernels, const LinearS8Args& args, const Executor& executor);

// Strip by strip: quantises the tokens, packs them into panels, multiplies its bands with them, finishes their output.
class SpmmS8Worker {
 public:
  SpmmS8Worker(const SpmmS8Job& job, Range rows, Range bands);
  size_t ScratchBytes() const;
  void Run(Scratch& scratch);

 private:
  bool narrow() const { return args_.dtype != DType::kF32; }
  int64_t BeginOf(int64_t band) const { return band * kBandRowsS8; }

  void Take(Scratch& scratch);
  int64_t bands_at_once() const { return weight_.layout.blocks <= kBlocksAtOnce ? 1 : kBandsAtOnce; }
  size_t panel_bytes() const { return static_cast<size_t>(weight_.layout.depth / 4 * kernel_.quad_bytes); }
  size_t ScratchPanels() const;
  void Pack(int64_t tokens, Range blocks);
  void MultiplyBand(int64_t tokens, Range blocks, int64_t band, int32_t* acc);
  void RunStrip(Range rows);
  void FetchOutput(Range rows, int64_t band) const;
  void FinishBand(Range rows, int64_t band, const int32_t* acc);

  // The panels of these blocks of k, 192 KiB, stay in L2 while every band passes by. A weight that is deeper than that
  // goes so many bands at a time: their sums, 256 KiB, wait for the next panels.
  static constexpr int64_t kBlocksAtOnce = 4, kBandsAtOnce = 16;

  const SpmmS8Job& job_;
  const LinearS8Args& args_;
  const PackedViewSpmmS8& weight_;
  const SpmmS8Kernel& kernel_;
  const InputRows input_;
  const Range rows_, bands_;
  int64_t k_pad_, lda_;
  uint8_t* q_ = nullptr;       // [strip][lda]
  uint8_t* packed_ = nullptr;  // a panel before it is arranged
  uint8_t* panels_ = nullptr;
  int32_t* acc_ = nullptr;      // [bands_at_once * kBandRowsS8][strip], at last as floats
  float* row_scale_ = nullptr;  // [strip]
  int32_t* row_zero_ = nullptr;
  float* bias_ = nullptr;      // [kBandRowsS8 * bands]
  float* row_f32_ = nullptr;   // [k], 16-bit or smoothed inputs only
  float* out_ = nullptr;       // [strip][kBandRowsS8], 16-bit outputs only
  float* residual_ = nullptr;  // the same, when there is one
};

}  // namespace tersor

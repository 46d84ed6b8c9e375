// One thread's share of a spmm_f32 call.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "core/registry.h"
#include "core/scratch.h"
#include "ops/packed_spmm_f32.h"
#include "ops/range.h"
#include "tersor/spmm_f32.h"

namespace tersor {

struct SpmmF32Job {
  const SpmmF32Args& args;
  const PackedViewSpmmF32& weight;
  const Selection& kernels;
  int32_t tasks = 1;
  bool by_rows = false;
  std::atomic<bool> out_of_memory{false};
};

// Strip by strip: packs one block of k of the tokens into a panel, lets the bands pass by, and finishes their output
// after the last block.
class SpmmF32Worker {
 public:
  SpmmF32Worker(const SpmmF32Job& job, Range rows, Range bands);
  size_t ScratchBytes() const;
  void Run(Scratch& scratch);

 private:
  bool narrow() const { return args_.dtype != DType::kF32; }
  size_t element() const { return narrow() ? 2 : 4; }
  int64_t BeginOf(int64_t band) const { return band * kBandRowsF32; }
  int64_t bands_at_once() const { return std::min(kBandsAtOnce, bands_.count()); }
  size_t strip() const { return static_cast<size_t>(kernel_.strip); }

  void Take(Scratch& scratch);
  void LoadRow(int64_t row, int64_t column, int64_t count, float* to) const;
  void FillPanel(Range rows, int64_t block);
  void FetchOutput(Range rows, int64_t band) const;
  void RunStrip(Range rows);
  void FinishBand(Range rows, int64_t band, const float* acc);
  void FinishRow(const SpmmF32FinishArgs& f, const float* acc) const;

  // A panel stays in L1 while so many bands pass by; their sums, 512 KiB, wait in L2 for the next block.
  static constexpr int64_t kBandsAtOnce = 64;

  const SpmmF32Job& job_;
  const SpmmF32Args& args_;
  const PackedViewSpmmF32& weight_;
  const SpmmF32Kernel& kernel_;
  const Range rows_, bands_;
  float* panel_ = nullptr;     // [depth + 1][strip]
  float* acc_ = nullptr;       // [bands_at_once * kBandRowsF32][strip]
  float* x_ = nullptr;         // [strip][depth]: what is not float32, or not whole, before it is packed
  float* bias_ = nullptr;      // [kBandRowsF32 * bands]
  float* out_ = nullptr;       // [strip][kBandRowsF32], 16-bit outputs only
  float* residual_ = nullptr;  // the same
};

}  // namespace tersor

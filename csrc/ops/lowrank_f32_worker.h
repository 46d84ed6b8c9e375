// One thread's share of a lowrank_f32 call.
#pragma once
#include <cstdint>

#include "core/registry.h"
#include "core/scratch.h"
#include "ops/lowrank_split.h"
#include "ops/packed_lowrank_f32.h"
#include "ops/range.h"
#include "tersor/lowrank.h"

namespace tersor {

// Strip by strip: h = x V, a block of k at a time, then y = h U + bias and what follows.
class LowRankF32Worker {
 public:
  using Job = LowRankJob<PackedViewLowRankF32, LowRankF32Args, Selection>;

  LowRankF32Worker(const Job& job, const LowRankShare& share);
  size_t ScratchBytes() const;
  void Run(Scratch& scratch);

 private:
  bool narrow() const { return args_.dtype != DType::kF32; }
  size_t element() const { return narrow() ? 2 : 4; }
  int64_t Padded(Range columns) const { return (columns.count() + kernel_.nr - 1) / kernel_.nr * kernel_.nr; }
  size_t outs() const { return static_cast<size_t>(kernel_.mr * (few_ ? Padded(share_.up) : kernel_.nr)); }
  float* H(int64_t row) const { return h_ + (job_.h == nullptr ? row - strip_begin_ : row) * h_stride_; }
  const char* At(const void* base, int64_t stride, int64_t row, int64_t column) const {
    return static_cast<const char*>(base) + static_cast<size_t>(row * stride + column) * element();
  }

  void Take(Scratch& scratch);
  void Load(Range rows, int64_t column, int64_t count);
  void Down(Range rows);
  void Up(Range rows);
  void UpTile(Range rows, Range columns);
  template <typename Use>
  void ForEachTile(Range rows, Range columns, Use use) const;

  const Job& job_;
  const LowRankF32Args& args_;
  const PackedViewLowRankF32& weight_;
  const GemmF32Kernel& kernel_;
  const LowRankShare share_;
  int64_t strips_ = 1, strip_rows_, block_, ldx_, h_stride_;
  bool few_;     // a strip is one tile, which takes all columns and all of k at once
  bool copies_;  // x is read from x_
  int64_t strip_begin_ = 0;
  float* x_ = nullptr;         // [strip_rows][ldx]
  float* h_ = nullptr;         // [strip_rows][h_stride], or that of all rows where threads share it
  float* zeros_ = nullptr;     // [columns of h, padded]
  float* bias_ = nullptr;      // [columns of y, padded]
  float* out_ = nullptr;       // [mr][columns of a call], 16-bit outputs only
  float* residual_ = nullptr;  // the same
};

}  // namespace tersor

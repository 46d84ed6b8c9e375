// One thread's share of a lowrank_s8 call.
#pragma once
#include <algorithm>
#include <cstdint>

#include "core/registry.h"
#include "core/scratch.h"
#include "ops/input_rows.h"
#include "ops/lowrank_split.h"
#include "ops/packed_lowrank_s8.h"
#include "ops/range.h"
#include "tersor/lowrank.h"

namespace tersor {

// LowRankS8 with a choice of kernels; the packed weight names its own.
void LowRankS8With(const Selection& kernels, const LinearS8Args& args, const Executor& executor);

// Strip by strip: quantises x, h = x V, quantises h, y = h U + bias; a dense weight meets the same quantised x and is
// added to y tile by tile.
class LowRankS8Worker {
 public:
  using Job = LowRankJob<PackedViewLowRankS8, LinearS8Args, Selection>;

  LowRankS8Worker(const Job& job, const LowRankShare& share);
  size_t ScratchBytes() const;
  void Run(Scratch& scratch);

 private:
  // Quantised rows of a strip.
  struct Operand {
    int64_t lda, k_pad;
    uint8_t* q = nullptr;     // [strip_rows][lda]
    float* scale = nullptr;   // [strip_rows]
    int32_t* zero = nullptr;  // [strip_rows]
  };
  struct Tile {
    Range rows, columns;   // rows of the call
    int64_t index, count;  // which of the tiles of a panel this is
    bool last_panel;
  };

  bool narrow() const { return args_.dtype != DType::kF32; }
  size_t element() const { return narrow() ? 2 : 4; }
  bool quantises_x() const { return share_.down.count() > 0 || weight_.has_dense; }
  size_t outs() const { return static_cast<size_t>(few_ ? strip_rows_ * Padded(share_.up) : kernel_.mr * kernel_.nr); }
  int64_t Padded(Range columns) const { return RoundUp(columns.count(), kernel_.nr); }
  int64_t widest() const { return std::max(Padded(share_.down), Padded(share_.up)); }
  float* H(int64_t row) const { return h_ + (job_.h == nullptr ? row - strip_begin_ : row) * h_stride_; }

  Operand MakeOperand(int64_t k) const;
  size_t OperandBytes(const Operand& a) const;
  void TakeOperand(Scratch& scratch, Operand& a) const;
  void Take(Scratch& scratch);
  void QuantizeX(Range strip);
  void QuantizeH(Range strip);
  void Down(Range strip);
  void Up(Range strip);
  void UpTile(const Tile& tile);
  GemmS8Args Product(const PackedViewS8& weight, const Operand& a, const Tile& tile) const;
  void Multiply(const GemmS8Args& g) const { (few_ ? kernel_.rows : kernel_.tile)(g); }
  template <typename Use>
  void ForEachTile(Range rows, Range columns, Use use) const;

  const Job& job_;
  const LinearS8Args& args_;
  const PackedViewLowRankS8& weight_;
  const GemmS8Kernel& kernel_;
  const LowRankShare share_;
  int64_t strips_ = 1, strip_rows_, h_stride_, strip_begin_ = 0;
  bool few_;  // a strip is few rows, for which the kernel takes all columns at once
  Operand x_, hq_;
  float* h_ = nullptr;         // [strip_rows][h_stride], or that of all rows where threads share it
  float* row_f32_ = nullptr;   // [k], 16-bit or smoothed inputs only
  float* zeros_ = nullptr;     // [widest]
  float* bias_ = nullptr;      // [columns of y, padded]
  float* out_ = nullptr;       // [rows of a call][columns of a call], 16-bit outputs only
  float* residual_ = nullptr;  // the same
};

}  // namespace tersor

// One thread's share of a linear_lut4 call.
#pragma once
#include <atomic>
#include <cstdint>

#include "core/registry.h"
#include "core/scratch.h"
#include "ops/input_rows.h"
#include "ops/packed_lut4.h"
#include "ops/packed_s8.h"
#include "ops/range.h"

namespace tersor {

// Bands of columns that are decoded at a time: whole panels of codes and of gemm_s8.
struct Lut4Bands {
  int64_t width, count;
  Lut4Bands(const PackedViewLut4& weight, const GemmS8Kernel& gemm)
      : width(gemm.nr > kPanelRowsLut4 ? gemm.nr : kPanelRowsLut4), count((weight.spec.n + width - 1) / width) {}
};

// The int8 panels of gemm_s8 of one band, with what its epilogue wants: each part of k has a scale of its own.
class DecodedBand {
 public:
  DecodedBand(const PackedViewLut4& weight, const Selection& kernels);
  size_t ScratchBytes() const;
  void Take(Scratch& scratch);
  void Decode(int64_t band);
  const char* Panel(int64_t column, int64_t part) const;  // column: within the band
  const float* Scale(int64_t part) const { return scale_ + part * width_; }
  const int32_t* ColSum(int64_t part) const { return col_sum_ + part * width_; }
  int32_t Depth(int64_t part) const;

 private:
  void DecodeThroughRows(const Lut4Panel* halves, int64_t count);

  const PackedViewLut4& weight_;
  const GemmS8Kernel& gemm_;
  const Lut4Kernel& lut4_;
  const int64_t width_;
  const size_t panel_bytes_;
  char* panels_ = nullptr;  // [width / nr][panel_bytes]
  float* scale_ = nullptr;  // [parts][width]
  int32_t* col_sum_ = nullptr;
  int8_t* rows_ = nullptr;  // [width][kSlice]
};

struct LinearLut4Job {
  const LinearS8Args& args;
  const PackedViewLut4& weight;
  const Selection& kernels;
  int32_t tasks = 1;
  bool by_rows = false;
  std::atomic<bool> out_of_memory{false};
};

// Quantises a block of its rows, then decodes band after band and multiplies, or leaves both to the kernel for few
// rows.
class LinearLut4Worker {
 public:
  // columns: whole bands, or whole panels of codes where the rows are few.
  LinearLut4Worker(const LinearLut4Job& job, Range rows, Range columns);
  size_t ScratchBytes() const;
  void Run(Scratch& scratch);

 private:
  bool narrow() const { return args_.dtype != DType::kF32; }
  bool few() const { return rows_.count() <= job_.kernels.lut4->max_m; }
  int64_t out_columns() const;

  void RunFew();
  void RunBand(Range rows, int64_t band);
  void Tile(Range rows, Range columns, int64_t row, int64_t column);
  const float* Widened(Range rows, Range columns, int64_t stride);
  void Finish(int64_t rows, Range columns, int64_t first_row, float* c, int64_t ldc);

  const LinearLut4Job& job_;
  const LinearS8Args& args_;
  const PackedViewLut4& weight_;
  const InputRows input_;
  const Range rows_, columns_;
  const Lut4Bands bands_;
  DecodedBand band_;
  int64_t k_pad_, lda_, tiles_ = 1, blocks_ = 1, block_rows_, out_rows_;
  uint8_t* q_ = nullptr;
  float* row_scale_ = nullptr;
  int32_t* row_zero_ = nullptr;
  float *bias_ = nullptr, *zeros_ = nullptr, *row_f32_ = nullptr, *out_ = nullptr, *residual_ = nullptr;
};

}  // namespace tersor

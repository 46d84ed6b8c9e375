// One task of a convolution: some output pixels, or some columns of all of them.
#pragma once
#include "ops/finish_s8.h"
#include "ops/packed_conv_s8.h"
#include "ops/range.h"

namespace tersor {

struct ConvJob {
  const ConvS8Args& args;
  PackedConvView weight;
  const Selection& kernels;
  int64_t out_h, out_w;
  int32_t tasks = 1;
  bool by_pixels = true;  // else by panels of columns
  bool out_of_memory = false;

  int64_t pixels() const { return args.batch * out_h * out_w; }
  FinishOutput Output() const {
    return {args.activation, args.residual, args.residual_as, args.y_f32, args.y, args.y_as, weight.shape.out_channels};
  }
};

// Convolution as a product of matrices: the inputs of a block of output pixels are gathered, row by row, into scratch
// memory that stays in the cache; those of a 1x1 filter of stride 1 lie in x as they are.
class ConvGemmWorker {
 public:
  ConvGemmWorker(const ConvJob& job, Range pixels, Range columns);
  size_t ScratchBytes() const;
  void Run(Scratch& scratch);

 private:
  const GemmBytesS8Kernel* BytesKernel() const;
  void RunGroup(const PackedViewS8& matrix, int64_t group, const Finisher& finisher);
  void RunBlock(const PackedViewS8& matrix, int64_t group, Range block, const Finisher& finisher);
  void Gather(int64_t group, Range pixels);
  void GatherRow(const uint8_t* image, int64_t y, Range x, bool last, uint8_t* to) const;
  void GatherPixel(const uint8_t* image, int64_t y, int64_t x, uint8_t* to) const;

  const ConvJob& job_;
  const ConvShape& shape_;
  Range pixels_, columns_;  // columns of one group
  PackedViewS8 first_;
  int64_t depth_, k_pad_, lda_, block_pixels_, acc_columns_;
  bool direct_, few_;
  const GemmBytesS8Kernel* bytes_;  // or null: sums are written, then finished
  uint8_t* rows_ = nullptr;         // [block_pixels][lda]
  int32_t* acc_ = nullptr;          // [mr or row_limit][acc_columns]
};

// A depthwise filter over rows of output pixels. The rows of x that a filter meets lie in a ring, padded at both ends.
class DepthwiseWorker {
 public:
  DepthwiseWorker(const ConvJob& job, Range rows);
  size_t ScratchBytes() const;
  void Run(Scratch& scratch);

 private:
  const uint8_t* InputRow(int64_t image, int64_t y);

  const ConvJob& job_;
  const ConvShape& shape_;
  Range rows_;  // of batch * out_h
  int64_t slots_, row_bytes_;
  uint8_t* ring_ = nullptr;     // [slots][row_bytes]
  uint8_t* outside_ = nullptr;  // a row of zero points
  int64_t* held_ = nullptr;     // [slots]: which row of x, counted over all images, lies there
  const uint8_t** taps_ = nullptr;
  int32_t* acc_ = nullptr;
};

}  // namespace tersor

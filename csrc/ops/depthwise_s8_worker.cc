#include <algorithm>
#include <cstring>

#include "ops/conv_s8_worker.h"

namespace tersor {
namespace {

constexpr int64_t kPixels = 32;  // whose sums of a block of channels stay in L1

}  // namespace

DepthwiseWorker::DepthwiseWorker(const ConvJob& job, Range rows) : job_(job), shape_(job.weight.shape), rows_(rows) {
  slots_ = shape_.dilation_h * (shape_.kernel_h - 1) + 1;
  const int64_t width = shape_.pad_left + job.args.width + shape_.pad_right;
  row_bytes_ = RoundUp(width * shape_.in_channels + kDepthwiseSlack, 64);
}

size_t DepthwiseWorker::ScratchBytes() const {
  return Scratch::Padded<uint8_t>(static_cast<size_t>((slots_ + 1) * row_bytes_)) +
         Scratch::Padded<int64_t>(static_cast<size_t>(slots_)) +
         Scratch::Padded<const uint8_t*>(static_cast<size_t>(2 * shape_.kernel_h)) +
         Scratch::Padded<int32_t>(kPixels * kDepthwiseBlock) + Finisher::ScratchBytes(shape_.in_channels);
}

// Row y of an image, from the ring; the rows of a filter never share a slot.
const uint8_t* DepthwiseWorker::InputRow(int64_t image, int64_t y) {
  if (y < 0 || y >= job_.args.height) return outside_;
  const int64_t row = image * job_.args.height + y, slot = y % slots_;
  uint8_t* to = ring_ + slot * row_bytes_;
  if (held_[slot] != row) {
    const int64_t bytes = job_.args.width * shape_.in_channels;
    std::memcpy(to + shape_.pad_left * shape_.in_channels, job_.args.x + row * bytes, static_cast<size_t>(bytes));
    held_[slot] = row;
  }
  return to;
}

void DepthwiseWorker::Run(Scratch& scratch) {
  const ConvShape& s = shape_;
  const PackedConvView& weight = job_.weight;
  const int64_t channels = s.in_channels;
  ring_ = scratch.Take<uint8_t>(static_cast<size_t>((slots_ + 1) * row_bytes_));
  outside_ = ring_ + slots_ * row_bytes_;
  std::memset(ring_, job_.args.x_as.zero_point, static_cast<size_t>((slots_ + 1) * row_bytes_));
  held_ = scratch.Take<int64_t>(static_cast<size_t>(slots_));
  std::fill_n(held_, slots_, int64_t{-1});
  taps_ = scratch.Take<const uint8_t*>(static_cast<size_t>(2 * s.kernel_h));
  acc_ = scratch.Take<int32_t>(kPixels * kDepthwiseBlock);
  Finisher finisher(job_.kernels, job_.Output(), channels, scratch);
  for (int64_t c = 0; c < channels; ++c) {
    finisher.offset[c] = job_.args.x_as.zero_point * weight.col_sum[c];
    finisher.scale[c] = job_.args.x_as.scale * weight.scale[c];
    finisher.bias[c] = job_.args.bias != nullptr ? job_.args.bias[c] : 0.0f;
  }

  const DepthwiseS8Kernel& kernel = *weight.depthwise;
  const bool finished = kernel.row_bytes != nullptr && finisher.clamps_bytes() && !finisher.adds();
  DepthwiseS8Args g{};
  g.kernel_h = static_cast<int32_t>(s.kernel_h);
  g.kernel_w = static_cast<int32_t>(s.kernel_w);
  g.pixel = s.stride_w * channels;
  g.tap = s.dilation_w * channels;
  g.acc = acc_;
  g.ld_acc = kDepthwiseBlock;
  const uint8_t** shifted = taps_ + s.kernel_h;
  g.rows = shifted;
  const size_t block_bytes = kernel.bytes(static_cast<int32_t>(kDepthwiseBlock), g.kernel_h, g.kernel_w);
  for (int64_t row = rows_.begin; row < rows_.end; ++row) {
    const int64_t image = row / job_.out_h, y = row % job_.out_h * s.stride_h - s.pad_top;
    for (int64_t ky = 0; ky < s.kernel_h; ++ky) taps_[ky] = InputRow(image, y + ky * s.dilation_h);
    for (int64_t c = 0; c < channels; c += kDepthwiseBlock) {
      g.channels = static_cast<int32_t>(std::min(kDepthwiseBlock, channels - c));
      g.weights = weight.weights + static_cast<size_t>(c / kDepthwiseBlock) * block_bytes;
      for (int64_t x = 0; x < job_.out_w; x += g.pixels) {
        g.pixels = static_cast<int32_t>(finished ? job_.out_w : std::min(kPixels, job_.out_w - x));
        for (int64_t ky = 0; ky < s.kernel_h; ++ky) shifted[ky] = taps_[ky] + x * g.pixel + c;
        if (finished) {
          kernel.row_bytes(g, finisher.Args(row * job_.out_w + x, c, c));
          continue;
        }
        kernel.row(g);
        finisher.Run(acc_, kDepthwiseBlock, g.pixels, g.channels, row * job_.out_w + x, c, c);
      }
    }
  }
}

}  // namespace tersor

#include "ops/conv_s8_worker.h"

#include <algorithm>
#include <cstring>

#include "tersor/linear_s8.h"

namespace tersor {
namespace {

// The gathered rows of a block stay in L2 while every panel passes by.
constexpr int64_t kBlockBytes = int64_t{128} << 10;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// memcpy of few bytes without a call.
inline void CopyRun(uint8_t* to, const uint8_t* from, int64_t bytes) {
  if (bytes >= 16) {
    if (bytes > 128) {
      std::memcpy(to, from, static_cast<size_t>(bytes));
      return;
    }
    for (int64_t i = 0; i + 16 < bytes; i += 16) std::memcpy(to + i, from + i, 16);
    std::memcpy(to + bytes - 16, from + bytes - 16, 16);
  } else if (bytes >= 8) {
    std::memcpy(to, from, 8);
    std::memcpy(to + bytes - 8, from + bytes - 8, 8);
  } else if (bytes >= 4) {
    std::memcpy(to, from, 4);
    std::memcpy(to + bytes - 4, from + bytes - 4, 4);
  } else {
    for (int64_t i = 0; i < bytes; ++i) to[i] = from[i];
  }
}

}  // namespace

ConvGemmWorker::ConvGemmWorker(const ConvJob& job, Range pixels, Range columns)
    : job_(job), shape_(job.weight.shape), pixels_(pixels), columns_(columns), first_(job.weight.Group(0)) {
  const GemmS8Kernel& kernel = *first_.kernel;
  depth_ = first_.k;
  k_pad_ = RoundUp(depth_, kernel.kr);
  const ConvShape& s = shape_;
  direct_ = s.kernel_h * s.kernel_w == 1 && s.stride_h == 1 && s.stride_w == 1 && s.groups == 1 && k_pad_ == depth_ &&
            s.pad_top + s.pad_left + s.pad_bottom + s.pad_right == 0;
  bytes_ = BytesKernel();
  few_ = bytes_ == nullptr && pixels.count() <= kernel.row_limit;
  // Gathered rows are an odd number of cache lines apart: those of a tile never fall into the same few cache sets.
  lda_ = direct_ ? depth_ : ((k_pad_ + 63) / 64 | 1) * 64;
  const int64_t mr = kernel.mr, tiles = CeilDiv(pixels.count(), mr);
  const int64_t blocks = CeilDiv(tiles, std::max<int64_t>(kBlockBytes / (lda_ * mr), 1));
  block_pixels_ = std::min(CeilDiv(tiles, blocks) * mr, pixels.count());
  acc_columns_ = few_ ? RoundUp(columns.count(), kernel.nr) : kernel.nr;
}

const GemmBytesS8Kernel* ConvGemmWorker::BytesKernel() const {
  const GemmBytesS8Kernel* kernel = job_.kernels.gemm_bytes_s8;
  if (kernel == nullptr || !Finisher::ClampsBytes(job_.Output())) return nullptr;
  return std::strcmp(kernel->gemm, first_.kernel->id) == 0 ? kernel : nullptr;
}

size_t ConvGemmWorker::ScratchBytes() const {
  const int64_t acc_rows = few_ ? pixels_.count() : first_.kernel->mr;
  const size_t rows = direct_ ? 0 : static_cast<size_t>(block_pixels_ * lda_);
  return Scratch::Padded<uint8_t>(rows) + Scratch::Padded<int32_t>(static_cast<size_t>(acc_rows * acc_columns_)) +
         Finisher::ScratchBytes(columns_.count());
}

void ConvGemmWorker::Run(Scratch& scratch) {
  if (!direct_) {
    rows_ = scratch.Take<uint8_t>(static_cast<size_t>(block_pixels_ * lda_));
    for (int64_t i = 0; i < block_pixels_; ++i)
      std::memset(rows_ + i * lda_ + depth_, 0, static_cast<size_t>(k_pad_ - depth_));
  }
  const int64_t acc_rows = few_ ? pixels_.count() : first_.kernel->mr;
  acc_ = scratch.Take<int32_t>(static_cast<size_t>(acc_rows * acc_columns_));
  Finisher finisher(job_.kernels, job_.Output(), columns_.count(), scratch);
  for (int64_t group = 0; group < shape_.groups; ++group) {
    const PackedViewS8 matrix = group == 0 ? first_ : job_.weight.Group(group);
    const int64_t channel = group * matrix.n;
    for (int64_t i = 0; i < columns_.count(); ++i) {
      const int64_t column = columns_.begin + i;
      finisher.offset[i] = job_.args.x_as.zero_point * matrix.col_sum[column];
      finisher.scale[i] = job_.args.x_as.scale * matrix.scale[column];
      finisher.bias[i] = job_.args.bias != nullptr ? job_.args.bias[channel + column] : 0.0f;
    }
    RunGroup(matrix, group, finisher);
  }
}

void ConvGemmWorker::RunGroup(const PackedViewS8& matrix, int64_t group, const Finisher& finisher) {
  for (int64_t begin = pixels_.begin; begin < pixels_.end; begin += block_pixels_)
    RunBlock(matrix, group, {begin, std::min(begin + block_pixels_, pixels_.end)}, finisher);
}

void ConvGemmWorker::RunBlock(const PackedViewS8& matrix, int64_t group, Range block, const Finisher& finisher) {
  const GemmS8Kernel& kernel = *matrix.kernel;
  const uint8_t* a = direct_ ? job_.args.x + block.begin * depth_ : rows_;
  if (!direct_) Gather(group, block);
  GemmS8Args g{};
  g.k = static_cast<int32_t>(depth_);
  g.lda = lda_;
  g.acc = acc_;
  g.ld_acc = acc_columns_;
  const int64_t column_step = few_ ? std::max<int64_t>(columns_.count(), 1) : kernel.nr;
  const EvenSplit tiles(block.count(), few_ ? 1 : CeilDiv(block.count(), kernel.mr));
  const int64_t tile_count = few_ ? 1 : CeilDiv(block.count(), kernel.mr);
  for (int64_t column = columns_.begin; column < columns_.end; column += column_step) {
    g.n = static_cast<int32_t>(std::min(column_step, columns_.end - column));
    g.panel = matrix.Panel(0, column / kernel.nr);
    g.col_sum = matrix.col_sum + column;
    for (int64_t t = 0; t < tile_count; ++t) {
      const Range tile = tiles[t];
      g.m = static_cast<int32_t>(tile.count());
      g.a = a + tile.begin * lda_;
      if (bytes_ != nullptr) {
        bytes_->tile(g, finisher.Args(block.begin + tile.begin, group * matrix.n + column, column - columns_.begin));
        continue;
      }
      (few_ ? kernel.rows : kernel.tile)(g);
      finisher.Run(acc_, acc_columns_, g.m, g.n, block.begin + tile.begin, group * matrix.n + column,
                   column - columns_.begin);
    }
  }
}

void ConvGemmWorker::Gather(int64_t group, Range pixels) {
  const int64_t image_pixels = job_.out_h * job_.out_w, channels = shape_.in_channels;
  const int64_t image_bytes = job_.args.height * job_.args.width * channels;
  const int64_t first = group * (channels / shape_.groups);
  uint8_t* to = rows_;
  for (int64_t pixel = pixels.begin; pixel < pixels.end;) {
    const int64_t image = pixel / image_pixels, y = pixel % image_pixels / job_.out_w, x = pixel % job_.out_w;
    const int64_t count = std::min(job_.out_w - x, pixels.end - pixel);
    GatherRow(job_.args.x + image * image_bytes + first, y, {x, x + count}, image + 1 == job_.args.batch, to);
    pixel += count;
    to += count * lda_;
  }
}

// Pixels x of output row y. Where the taps of a row are one run of bytes inside the input, one row of the filter at a
// time. Up to 16 bytes are copied in one go: what follows the run is overwritten by the next one or meets zero weights,
// and lies in the input, except in the last row of the last image.
void ConvGemmWorker::GatherRow(const uint8_t* image, int64_t y, Range x, bool last, uint8_t* to) const {
  const ConvShape& s = shape_;
  const int64_t channels = s.in_channels, width = job_.args.width, height = job_.args.height;
  const int64_t top = y * s.stride_h - s.pad_top, run = s.kernel_w * channels;
  Range inside{x.begin, x.begin};
  if (s.dilation_w == 1 && s.groups == 1) {
    inside.begin = std::clamp(CeilDiv(s.pad_left, s.stride_w), x.begin, x.end);
    const int64_t room = width - s.kernel_w + s.pad_left;  // of the first tap's place, counted from -pad_left
    inside.end = room < 0 ? inside.begin : std::clamp(room / s.stride_w + 1, inside.begin, x.end);
  }
  for (int64_t i = x.begin; i < x.end; ++i)
    if (i < inside.begin || i >= inside.end)
      GatherPixel(image, top, i * s.stride_w - s.pad_left, to + (i - x.begin) * lda_);
  for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
    const int64_t iy = top + ky * s.dilation_h, step = s.stride_w * channels;
    uint8_t* row = to + (inside.begin - x.begin) * lda_ + ky * run;
    if (iy < 0 || iy >= height) {
      for (int64_t i = inside.begin; i < inside.end; ++i, row += lda_)
        std::memset(row, job_.args.x_as.zero_point, static_cast<size_t>(run));
      continue;
    }
    const uint8_t* from = image + (iy * width + inside.begin * s.stride_w - s.pad_left) * channels;
    const bool whole = run <= 16 && ky * run + 16 <= lda_ && width * channels >= 16 && !(last && iy + 1 == height);
    for (int64_t i = inside.begin; i < inside.end; ++i, row += lda_, from += step)
      if (whole)
        std::memcpy(row, from, 16);
      else
        CopyRun(row, from, run);
  }
}

// What the filter meets whose first tap lies at (y, x) of an image.
void ConvGemmWorker::GatherPixel(const uint8_t* image, int64_t y, int64_t x, uint8_t* to) const {
  const ConvShape& s = shape_;
  const int64_t channels = s.in_channels, live = channels / s.groups;
  const int64_t height = job_.args.height, width = job_.args.width;
  const int zero = job_.args.x_as.zero_point;
  const bool adjacent = s.dilation_w == 1 && s.groups == 1;  // the taps of a row are one run of bytes
  const int64_t row = s.kernel_w * live;
  const bool inside = x >= 0 && x + (s.kernel_w - 1) * s.dilation_w < width;
  for (int64_t ky = 0; ky < s.kernel_h; ++ky, y += s.dilation_h, to += row) {
    if (y < 0 || y >= height) {
      std::memset(to, zero, static_cast<size_t>(row));
      continue;
    }
    const uint8_t* from = image + y * width * channels;
    if (adjacent && inside) {
      CopyRun(to, from + x * channels, row);
      continue;
    }
    for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
      const int64_t column = x + kx * s.dilation_w;
      if (column < 0 || column >= width)
        std::memset(to + kx * live, zero, static_cast<size_t>(live));
      else
        CopyRun(to + kx * live, from + column * channels, live);
    }
  }
}

}  // namespace tersor

#include "ops/linear_s8_worker.h"

#include <algorithm>

namespace tersor {
namespace {

// The quantised rows of a block stay in L2 while every panel passes by.
constexpr int64_t kBlockBytes = int64_t{192} << 10;

}  // namespace

LinearS8Worker::LinearS8Worker(const LinearS8Job& job, Range rows, Range columns)
    : job_(job),
      args_(job.args),
      weight_(job.weight),
      kernel_(*job.weight.kernel),
      input_{job.args, job.weight.k, job.weight.input_scale, job.kernels},
      rows_(rows),
      columns_(columns),
      few_(rows.count() <= kernel_.row_limit) {
  k_pad_ = RoundUp(weight_.k, kernel_.kr);
  padded_columns_ = RoundUp(columns.count(), kernel_.nr);
  pads_bias_ = args_.bias == nullptr || padded_columns_ != columns.count();
  // An odd number of cache lines: rows of a tile never fall into the same few cache sets.
  lda_ = ((k_pad_ + 63) / 64 | 1) * 64;
  block_rows_ = out_rows_ = rows.count();
  out_columns_ = columns.count();
  if (few_) return;
  // Rows spread evenly over tiles, and tiles over blocks: none is left with one row.
  const int64_t mr = kernel_.mr, tiles_in_block = std::max<int64_t>(kBlockBytes / (lda_ * mr), 1);
  tiles_ = (rows.count() + mr - 1) / mr;
  blocks_ = (tiles_ + tiles_in_block - 1) / tiles_in_block;
  block_rows_ = std::min((tiles_ + blocks_ - 1) / blocks_ * mr, rows.count());
  out_rows_ = mr;
  out_columns_ = kernel_.nr;
}

size_t LinearS8Worker::ScratchBytes() const {
  const size_t rows = static_cast<size_t>(block_rows_), padded = static_cast<size_t>(padded_columns_);
  const size_t outs = static_cast<size_t>(out_rows_ * out_columns_);
  return Scratch::Padded<uint8_t>(rows * static_cast<size_t>(lda_)) + Scratch::Padded<float>(rows) +
         Scratch::Padded<int32_t>(rows) + (pads_bias_ ? Scratch::Padded<float>(padded) : 0) +
         (weight_.layout.chunks > 1 ? Scratch::Padded<float>(padded) : 0) +
         (input_.rewrites() ? Scratch::Padded<float>(static_cast<size_t>(weight_.k)) : 0) +
         (narrow() ? 2 * Scratch::Padded<float>(outs) : 0);
}

void LinearS8Worker::Take(Scratch& scratch) {
  const size_t rows = static_cast<size_t>(block_rows_), padded = static_cast<size_t>(padded_columns_);
  q_ = scratch.Take<uint8_t>(rows * static_cast<size_t>(lda_));
  row_scale_ = scratch.Take<float>(rows);
  row_zero_ = scratch.Take<int32_t>(rows);
  if (pads_bias_) {
    bias_ = scratch.Take<float>(padded);
    std::fill_n(bias_, padded, 0.0f);
    if (args_.bias != nullptr) std::copy_n(args_.bias + columns_.begin, columns_.count(), bias_);
  }
  if (weight_.layout.chunks > 1) {
    zeros_ = scratch.Take<float>(padded);
    std::fill_n(zeros_, padded, 0.0f);
  }
  if (input_.rewrites()) row_f32_ = scratch.Take<float>(static_cast<size_t>(weight_.k));
  if (narrow()) {
    const size_t outs = static_cast<size_t>(out_rows_ * out_columns_);
    out_ = scratch.Take<float>(outs);
    residual_ = scratch.Take<float>(outs);
  }
}

void LinearS8Worker::Finish(const GemmS8Args& g, char* y) {
  if (args_.activation == Activation::kNone && !narrow()) return;
  for (int64_t i = 0; i < g.m; ++i) {
    float* c = g.c + i * g.ldc;
    if (args_.activation != Activation::kNone) job_.kernels.activation->apply(args_.activation, g.n, c);
    if (narrow()) job_.kernels.convert->from_f32(args_.dtype, g.n, c, y + static_cast<size_t>(i * args_.ldy) * 2);
  }
}

// One call of the kernel per chunk of k, for rows of the block that begins at block_begin.
void LinearS8Worker::Compute(int64_t block_begin, Range rows, Range columns) {
  const size_t bytes = ElementBytes(args_.dtype);
  const int64_t row = rows.begin - block_begin, column = columns.begin;
  char* y = static_cast<char*>(args_.y) + static_cast<size_t>(rows.begin * args_.ldy + column) * bytes;

  GemmS8Args g{};
  g.m = static_cast<int32_t>(rows.count());
  g.n = static_cast<int32_t>(columns.count());
  g.lda = lda_;
  g.c = narrow() ? out_ : reinterpret_cast<float*>(y);
  g.ldc = narrow() ? out_columns_ : args_.ldy;
  g.row_scale = row_scale_ + row;
  g.row_zero = row_zero_ + row;
  g.col_scale = weight_.scale + column;
  g.bias = bias_ != nullptr ? bias_ + (column - columns_.begin) : args_.bias + column;
  if (args_.residual != nullptr) {
    const char* source =
        static_cast<const char*>(args_.residual) + static_cast<size_t>(rows.begin * args_.ldr + column) * bytes;
    g.residual = narrow() ? residual_ : reinterpret_cast<const float*>(source);
    g.ldr = narrow() ? out_columns_ : args_.ldr;
    for (int64_t i = 0; narrow() && i < g.m; ++i)
      job_.kernels.convert->to_f32(args_.dtype, g.n, source + static_cast<size_t>(i * args_.ldr) * 2,
                                   residual_ + i * out_columns_);
  }
  const int64_t panel = column / kernel_.nr;
  if (ahead_.count() > 0) {
    g.ahead = weight_.Panel(0, panel + 1) + ahead_.begin;
    g.ahead_bytes = ahead_.count();
  }
  for (int64_t chunk = 0; chunk < weight_.layout.chunks; ++chunk) {
    if (chunk > 0) {  // y = chunk + what is already there
      g.bias = zeros_ + (column - columns_.begin);
      g.residual = g.c;
      g.ldr = g.ldc;
    }
    g.k = weight_.ChunkDepth(chunk);
    g.a = q_ + row * lda_ + chunk * kMaxDepthS8;
    g.panel = weight_.Panel(chunk, panel);
    g.col_sum = weight_.col_sum + chunk * weight_.layout.n_pad + column;
    (few_ ? kernel_.rows : kernel_.tile)(g);
  }
  Finish(g, y);
}

// Each panel meets every row of the block while it is in L1.
void LinearS8Worker::RunBlock(Range block) {
  const EvenSplit rows(rows_.count(), tiles_);
  const Range block_rows = {rows_.begin + rows.Begin(block.begin), rows_.begin + rows.Begin(block.end)};
  const EvenSplit share(static_cast<int64_t>(kernel_.panel_bytes(weight_.ChunkDepth(0))), block.count());
  Quantize(block_rows);
  for (int64_t column = columns_.begin; column < columns_.end; column += kernel_.nr) {
    const Range live = {column, std::min(column + kernel_.nr, columns_.end)};
    for (int64_t t = block.begin; t < block.end; ++t) {
      const Range tile = rows[t];
      ahead_ = live.end < columns_.end ? share[t - block.begin] : Range{0, 0};
      Compute(block_rows.begin, {rows_.begin + tile.begin, rows_.begin + tile.end}, live);
    }
  }
}

void LinearS8Worker::Run(Scratch& scratch) {
  Take(scratch);
  if (few_) {
    Quantize(rows_);
    Compute(rows_.begin, rows_, columns_);
    return;
  }
  const EvenSplit blocks(tiles_, blocks_);
  for (int64_t i = 0; i < blocks_; ++i) RunBlock(blocks[i]);
}

}  // namespace tersor

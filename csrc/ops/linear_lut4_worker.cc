#include "ops/linear_lut4_worker.h"

#include <algorithm>

namespace tersor {
namespace {

// The quantised rows of a block stay in L2 beside the decoded band.
constexpr int64_t kBlockBytes = int64_t{192} << 10;

}  // namespace

LinearLut4Worker::LinearLut4Worker(const LinearLut4Job& job, Range rows, Range columns)
    : job_(job),
      args_(job.args),
      weight_(job.weight),
      input_{job.args, job.weight.spec.k, job.weight.input_scale, job.kernels},
      rows_(rows),
      columns_(columns),
      bands_(job.weight, *job.kernels.gemm_s8),
      band_(job.weight, job.kernels) {
  k_pad_ = RoundUp(weight_.spec.k, kStepLut4);
  // An odd number of cache lines: rows of a tile never fall into the same few cache sets.
  lda_ = ((k_pad_ + 63) / 64 | 1) * 64;
  block_rows_ = out_rows_ = rows.count();
  if (few()) return;
  const int64_t mr = job.kernels.gemm_s8->mr, tiles_in_block = std::max<int64_t>(kBlockBytes / (lda_ * mr), 1);
  tiles_ = (rows.count() + mr - 1) / mr;
  blocks_ = (tiles_ + tiles_in_block - 1) / tiles_in_block;
  block_rows_ = std::min((tiles_ + blocks_ - 1) / blocks_ * mr, rows.count());
  out_rows_ = mr;
}

// Few rows: of all columns, in whole panels. Else of one gemm_s8 panel.
int64_t LinearLut4Worker::out_columns() const {
  return few() ? RoundUp(columns_.count(), kPanelRowsLut4) : job_.kernels.gemm_s8->nr;
}

size_t LinearLut4Worker::ScratchBytes() const {
  const size_t rows = static_cast<size_t>(block_rows_), outs = static_cast<size_t>(out_rows_ * out_columns());
  const size_t bias = static_cast<size_t>(few() ? out_columns() : bands_.width);
  return Scratch::Padded<uint8_t>(rows * static_cast<size_t>(lda_)) + Scratch::Padded<float>(rows) +
         Scratch::Padded<int32_t>(rows) + 2 * Scratch::Padded<float>(bias) + 2 * Scratch::Padded<float>(outs) +
         Scratch::Padded<float>(static_cast<size_t>(weight_.spec.k)) + (few() ? 0 : band_.ScratchBytes());
}

void LinearLut4Worker::Run(Scratch& scratch) {
  const size_t rows = static_cast<size_t>(block_rows_), outs = static_cast<size_t>(out_rows_ * out_columns());
  const size_t bias = static_cast<size_t>(few() ? out_columns() : bands_.width);
  q_ = scratch.Take<uint8_t>(rows * static_cast<size_t>(lda_));
  row_scale_ = scratch.Take<float>(rows);
  row_zero_ = scratch.Take<int32_t>(rows);
  bias_ = scratch.Take<float>(bias);
  zeros_ = scratch.Take<float>(bias);
  out_ = scratch.Take<float>(outs);
  residual_ = scratch.Take<float>(outs);
  row_f32_ = scratch.Take<float>(static_cast<size_t>(weight_.spec.k));
  std::fill_n(bias_, bias, 0.0f);
  std::fill_n(zeros_, bias, 0.0f);
  if (few()) return RunFew();
  band_.Take(scratch);
  const EvenSplit tiles(rows_.count(), tiles_), blocks(tiles_, blocks_);
  for (int64_t b = 0; b < blocks_; ++b) {
    const Range block = {rows_.begin + tiles.Begin(blocks[b].begin), rows_.begin + tiles.Begin(blocks[b].end)};
    input_.Quantize(block, {q_, lda_, k_pad_, row_scale_, row_zero_}, row_f32_);
    for (int64_t band = columns_.begin / bands_.width; band * bands_.width < columns_.end; ++band) RunBand(block, band);
  }
}

void LinearLut4Worker::RunFew() {
  input_.Quantize(rows_, {q_, lda_, k_pad_, row_scale_, row_zero_}, row_f32_);
  if (args_.bias != nullptr) std::copy_n(args_.bias + columns_.begin, columns_.count(), bias_);
  Lut4RowsArgs g{};
  g.m = static_cast<int32_t>(rows_.count());
  g.panels = static_cast<int32_t>(out_columns() / kPanelRowsLut4);
  g.a = q_;
  g.lda = lda_;
  g.panel = weight_.Args(columns_.begin / kPanelRowsLut4);
  g.panel_bytes = static_cast<int64_t>(weight_.layout.panel_bytes);
  g.row_scale = row_scale_;
  g.row_zero = row_zero_;
  g.bias = bias_;
  g.ldy = out_columns();
  g.y = out_;
  if (args_.residual != nullptr) g.residual = Widened(rows_, columns_, g.ldy);
  job_.kernels.lut4->rows(g);
  Finish(g.m, columns_, rows_.begin, g.y, g.ldy);
}

// [rows][stride] of the residual as floats, in residual_.
const float* LinearLut4Worker::Widened(Range rows, Range columns, int64_t stride) {
  for (int64_t i = 0; i < rows.count(); ++i) {
    const char* source = static_cast<const char*>(args_.residual) +
                         static_cast<size_t>((rows.begin + i) * args_.ldr + columns.begin) * ElementBytes(args_.dtype);
    job_.kernels.convert->to_f32(args_.dtype, columns.count(), source, residual_ + i * stride);
  }
  return residual_;
}

// Activation, and the way to y where c is not y itself.
void LinearLut4Worker::Finish(int64_t rows, Range columns, int64_t first_row, float* c, int64_t ldc) {
  for (int64_t i = 0; i < rows; ++i) {
    float* from = c + i * ldc;
    char* y = static_cast<char*>(args_.y) +
              static_cast<size_t>((first_row + i) * args_.ldy + columns.begin) * ElementBytes(args_.dtype);
    if (args_.activation != Activation::kNone) job_.kernels.activation->apply(args_.activation, columns.count(), from);
    if (static_cast<void*>(from) != static_cast<void*>(y))
      job_.kernels.convert->from_f32(args_.dtype, columns.count(), from, y);
  }
}

void LinearLut4Worker::RunBand(Range rows, int64_t band) {
  const int64_t begin = band * bands_.width, end = std::min(begin + bands_.width, columns_.end);
  const int64_t nr = job_.kernels.gemm_s8->nr, mr = job_.kernels.gemm_s8->mr;
  band_.Decode(band);
  if (args_.bias != nullptr) std::copy_n(args_.bias + begin, end - begin, bias_);
  const EvenSplit tiles(rows.count(), (rows.count() + mr - 1) / mr);
  for (int64_t column = begin; column < end; column += nr) {
    const Range live = {column, std::min(column + nr, end)};
    for (int64_t t = 0; t < (rows.count() + mr - 1) / mr; ++t) {
      const Range tile = {tiles.Begin(t), tiles.Begin(t + 1)};
      Tile({rows.begin + tile.begin, rows.begin + tile.end}, live, tile.begin, column - begin);
    }
  }
}

// row: of the first one within the block; column: within the band.
void LinearLut4Worker::Tile(Range rows, Range columns, int64_t row, int64_t column) {
  const GemmS8Kernel& kernel = *job_.kernels.gemm_s8;
  GemmS8Args g{};
  g.m = static_cast<int32_t>(rows.count());
  g.n = static_cast<int32_t>(columns.count());
  g.lda = lda_;
  g.c = narrow() ? out_ : static_cast<float*>(args_.y) + rows.begin * args_.ldy + columns.begin;
  g.ldc = narrow() ? kernel.nr : args_.ldy;
  g.row_scale = row_scale_ + row;
  g.row_zero = row_zero_ + row;
  g.bias = bias_ + column;
  if (args_.residual != nullptr) {
    g.residual = narrow() ? Widened(rows, columns, kernel.nr)
                          : static_cast<const float*>(args_.residual) + rows.begin * args_.ldr + columns.begin;
    g.ldr = narrow() ? kernel.nr : args_.ldr;
  }
  for (int64_t part = 0; part < weight_.layout.parts; ++part) {
    if (part > 0) {  // y = part + what is already there
      g.bias = zeros_;
      g.residual = g.c;
      g.ldr = g.ldc;
    }
    g.k = band_.Depth(part);
    g.a = q_ + row * lda_ + part * weight_.layout.depth;
    g.panel = band_.Panel(column, part);
    g.col_sum = band_.ColSum(part) + column;
    g.col_scale = band_.Scale(part) + column;
    kernel.tile(g);
  }
  Finish(g.m, columns, rows.begin, g.c, g.ldc);
}

}  // namespace tersor

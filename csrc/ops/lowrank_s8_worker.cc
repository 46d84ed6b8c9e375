#include "ops/lowrank_s8_worker.h"

namespace tersor {
namespace {

constexpr int64_t kStripBytes = int64_t{512} << 10;  // x and h of a strip stay in L2 while every panel passes by

}  // namespace

LowRankS8Worker::LowRankS8Worker(const Job& job, const LowRankShare& share)
    : job_(job),
      args_(job.args),
      weight_(job.weight),
      kernel_(*job.weight.kernel),
      share_(share),
      strip_rows_(share.rows.count()),
      h_stride_(job.h_stride()),
      x_(MakeOperand(job.weight.k)),
      hq_(MakeOperand(job.weight.rank)) {
  if (strip_rows_ > kernel_.row_limit) {
    const int64_t row_bytes = x_.lda + hq_.lda + h_stride_ * int64_t{sizeof(float)};
    const int64_t tiles = (strip_rows_ + kernel_.mr - 1) / kernel_.mr;
    const int64_t at_once = std::max<int64_t>(kStripBytes / (row_bytes * kernel_.mr), 1);
    strips_ = (tiles + at_once - 1) / at_once;
    strip_rows_ = (strip_rows_ + strips_ - 1) / strips_;
  }
  few_ = strip_rows_ <= kernel_.row_limit;
}

LowRankS8Worker::Operand LowRankS8Worker::MakeOperand(int64_t k) const {
  Operand a;
  a.k_pad = RoundUp(k, kernel_.kr);
  a.lda = ((a.k_pad + 63) / 64 | 1) * 64;  // odd, as h_stride
  return a;
}

size_t LowRankS8Worker::OperandBytes(const Operand& a) const {
  const size_t rows = static_cast<size_t>(strip_rows_);
  return Scratch::Padded<uint8_t>(rows * static_cast<size_t>(a.lda)) + Scratch::Padded<float>(rows) +
         Scratch::Padded<int32_t>(rows);
}

void LowRankS8Worker::TakeOperand(Scratch& scratch, Operand& a) const {
  const size_t rows = static_cast<size_t>(strip_rows_);
  a.q = scratch.Take<uint8_t>(rows * static_cast<size_t>(a.lda));
  a.scale = scratch.Take<float>(rows);
  a.zero = scratch.Take<int32_t>(rows);
}

size_t LowRankS8Worker::ScratchBytes() const {
  const size_t h = static_cast<size_t>(strip_rows_ * h_stride_);
  return OperandBytes(x_) + OperandBytes(hq_) + (job_.h == nullptr ? Scratch::Padded<float>(h) : 0) +
         Scratch::Padded<float>(static_cast<size_t>(weight_.k)) +
         Scratch::Padded<float>(static_cast<size_t>(widest())) +
         Scratch::Padded<float>(static_cast<size_t>(Padded(share_.up))) +
         (narrow() ? 2 * Scratch::Padded<float>(outs()) : 0);
}

void LowRankS8Worker::Take(Scratch& scratch) {
  TakeOperand(scratch, x_);
  TakeOperand(scratch, hq_);
  h_ = job_.h != nullptr ? job_.h : scratch.Take<float>(static_cast<size_t>(strip_rows_ * h_stride_));
  row_f32_ = scratch.Take<float>(static_cast<size_t>(weight_.k));
  zeros_ = scratch.Take<float>(static_cast<size_t>(widest()));
  std::fill_n(zeros_, widest(), 0.0f);
  bias_ = scratch.Take<float>(static_cast<size_t>(Padded(share_.up)));
  std::fill_n(bias_, Padded(share_.up), 0.0f);
  if (args_.bias != nullptr) std::copy(args_.bias + share_.up.begin, args_.bias + share_.up.end, bias_);
  if (!narrow()) return;
  out_ = scratch.Take<float>(outs());
  residual_ = scratch.Take<float>(outs());
}

void LowRankS8Worker::QuantizeX(Range strip) {
  const InputRows input{args_, weight_.k, weight_.down.input_scale, job_.kernels};
  input.Quantize(strip, {x_.q, x_.lda, x_.k_pad, x_.scale, x_.zero}, row_f32_);
}

void LowRankS8Worker::QuantizeH(Range strip) {
  LinearS8Args rows{};
  rows.x = H(strip.begin);
  rows.ldx = h_stride_;
  rows.dtype = DType::kF32;
  const InputRows input{rows, weight_.rank, nullptr, job_.kernels};
  input.Quantize({0, strip.count()}, {hq_.q, hq_.lda, hq_.k_pad, hq_.scale, hq_.zero}, nullptr);
}

// Calls use(tile) for every tile; a panel meets all rows of the strip while it is in L1.
template <typename Use>
void LowRankS8Worker::ForEachTile(Range rows, Range columns, Use use) const {
  if (few_) return use(Tile{rows, columns, 0, 1, true});
  const int64_t tiles = (rows.count() + kernel_.mr - 1) / kernel_.mr;
  const EvenSplit split(rows.count(), tiles);
  for (int64_t column = columns.begin; column < columns.end; column += kernel_.nr) {
    const Range live = {column, std::min(column + kernel_.nr, columns.end)};
    for (int64_t t = 0; t < tiles; ++t)
      use(Tile{
          {rows.begin + split.Begin(t), rows.begin + split.Begin(t + 1)}, live, t, tiles, live.end >= columns.end});
  }
}

GemmS8Args LowRankS8Worker::Product(const PackedViewS8& weight, const Operand& a, const Tile& tile) const {
  const int64_t row = tile.rows.begin - strip_begin_, column = tile.columns.begin, panel = column / kernel_.nr;
  GemmS8Args g{};
  g.m = static_cast<int32_t>(tile.rows.count());
  g.n = static_cast<int32_t>(tile.columns.count());
  g.k = static_cast<int32_t>(weight.k);
  g.a = a.q + row * a.lda;
  g.lda = a.lda;
  g.panel = weight.Panel(0, panel);
  g.col_sum = weight.col_sum + column;
  g.row_scale = a.scale + row;
  g.row_zero = a.zero + row;
  g.col_scale = weight.scale + column;
  g.bias = zeros_;
  if (!tile.last_panel) {  // each tile fetches its part of the next panel
    const Range ahead = EvenSplit(static_cast<int64_t>(kernel_.panel_bytes(g.k)), tile.count)[tile.index];
    g.ahead = weight.Panel(0, panel + 1) + ahead.begin;
    g.ahead_bytes = ahead.count();
  }
  return g;
}

void LowRankS8Worker::Down(Range strip) {
  ForEachTile(strip, share_.down, [&](const Tile& tile) {
    GemmS8Args g = Product(weight_.down, x_, tile);
    g.c = H(tile.rows.begin) + tile.columns.begin;
    g.ldc = h_stride_;
    Multiply(g);
  });
}

void LowRankS8Worker::UpTile(const Tile& tile) {
  const ConvertKernel& convert = *job_.kernels.convert;
  const int64_t row = tile.rows.begin, column = tile.columns.begin, ld_out = tile.columns.count();
  const auto at = [&](int64_t stride) { return static_cast<size_t>(row * stride + column) * element(); };
  char* y = static_cast<char*>(args_.y) + at(args_.ldy);
  GemmS8Args g = Product(weight_.up, hq_, tile);
  g.bias = bias_ + (column - share_.up.begin);
  g.c = narrow() ? out_ : reinterpret_cast<float*>(y);
  g.ldc = narrow() ? ld_out : args_.ldy;
  if (args_.residual != nullptr) {
    const char* source = static_cast<const char*>(args_.residual) + at(args_.ldr);
    g.residual = narrow() ? residual_ : reinterpret_cast<const float*>(source);
    g.ldr = narrow() ? ld_out : args_.ldr;
    for (int64_t i = 0; narrow() && i < g.m; ++i)
      convert.to_f32(args_.dtype, g.n, source + static_cast<size_t>(i * args_.ldr) * 2, residual_ + i * ld_out);
  }
  Multiply(g);
  if (weight_.has_dense) {
    GemmS8Args d = Product(weight_.dense, x_, tile);
    d.c = g.c;
    d.ldc = g.ldc;
    d.residual = g.c;
    d.ldr = g.ldc;
    Multiply(d);
  }
  if (args_.activation == Activation::kNone && !narrow()) return;
  for (int64_t i = 0; i < g.m; ++i) {
    float* c = g.c + i * g.ldc;
    if (args_.activation != Activation::kNone) job_.kernels.activation->apply(args_.activation, g.n, c);
    if (narrow()) convert.from_f32(args_.dtype, g.n, c, y + static_cast<size_t>(i * args_.ldy) * 2);
  }
}

void LowRankS8Worker::Up(Range strip) {
  ForEachTile(strip, share_.up, [&](const Tile& tile) { UpTile(tile); });
}

void LowRankS8Worker::Run(Scratch& scratch) {
  Take(scratch);
  const EvenSplit strips(share_.rows.count(), strips_);
  for (int64_t i = 0; i < strips_; ++i) {
    const Range strip{share_.rows.begin + strips.Begin(i), share_.rows.begin + strips.Begin(i + 1)};
    strip_begin_ = strip.begin;
    if (quantises_x()) QuantizeX(strip);
    if (share_.down.count() > 0) Down(strip);
    if (share_.up.count() == 0) continue;
    QuantizeH(strip);
    Up(strip);
  }
}

}  // namespace tersor

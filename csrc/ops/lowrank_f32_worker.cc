#include "ops/lowrank_f32_worker.h"

#include <algorithm>

namespace tersor {
namespace {

constexpr int64_t kBlock = 512;                      // values of k that a panel is read for at a time
constexpr int64_t kStripBytes = int64_t{640} << 10;  // x and h of a strip stay in L2
constexpr int64_t kInPlaceRows = 4;  // more rows of x, a power of two apart, would fall into the same few cache sets

}  // namespace

LowRankF32Worker::LowRankF32Worker(const Job& job, const LowRankShare& share)
    : job_(job),
      args_(job.args),
      weight_(job.weight),
      kernel_(*job.weight.kernel),
      share_(share),
      strip_rows_(share.rows.count()),
      h_stride_(job.h_stride()) {
  block_ = std::min(weight_.k, kBlock);
  ldx_ = ((block_ + 15) / 16 | 1) * 16;
  if (strip_rows_ > kernel_.mr) {
    const int64_t tile_bytes = kernel_.mr * (ldx_ + h_stride_) * int64_t{sizeof(float)};
    const int64_t tiles = (strip_rows_ + kernel_.mr - 1) / kernel_.mr;
    const int64_t at_once = std::max<int64_t>(kStripBytes / tile_bytes, 1);
    strips_ = (tiles + at_once - 1) / at_once;
    strip_rows_ = (strip_rows_ + strips_ - 1) / strips_;
  }
  few_ = strip_rows_ <= kernel_.mr;
  if (few_) {
    block_ = weight_.k;
    ldx_ = ((block_ + 15) / 16 | 1) * 16;
  }
  copies_ = narrow() || !few_ || strip_rows_ > kInPlaceRows;
}

size_t LowRankF32Worker::ScratchBytes() const {
  const size_t rows = static_cast<size_t>(strip_rows_);
  return (copies_ ? Scratch::Padded<float>(rows * static_cast<size_t>(ldx_)) : 0) +
         (job_.h == nullptr ? Scratch::Padded<float>(rows * static_cast<size_t>(h_stride_)) : 0) +
         Scratch::Padded<float>(static_cast<size_t>(Padded(share_.down))) +
         Scratch::Padded<float>(static_cast<size_t>(Padded(share_.up))) +
         (narrow() ? 2 * Scratch::Padded<float>(outs()) : 0);
}

void LowRankF32Worker::Take(Scratch& scratch) {
  const size_t rows = static_cast<size_t>(strip_rows_);
  if (copies_) x_ = scratch.Take<float>(rows * static_cast<size_t>(ldx_));
  h_ = job_.h != nullptr ? job_.h : scratch.Take<float>(rows * static_cast<size_t>(h_stride_));
  zeros_ = scratch.Take<float>(static_cast<size_t>(Padded(share_.down)));
  std::fill_n(zeros_, Padded(share_.down), 0.0f);
  bias_ = scratch.Take<float>(static_cast<size_t>(Padded(share_.up)));
  std::fill_n(bias_, Padded(share_.up), 0.0f);
  if (args_.bias != nullptr) std::copy(args_.bias + share_.up.begin, args_.bias + share_.up.end, bias_);
  if (!narrow()) return;
  out_ = scratch.Take<float>(outs());
  residual_ = scratch.Take<float>(outs());
}

// Calls use(rows, columns) for every tile; a panel meets all rows of the strip while it is in the cache.
template <typename Use>
void LowRankF32Worker::ForEachTile(Range rows, Range columns, Use use) const {
  if (few_) return use(rows, columns);
  const int64_t tiles = (rows.count() + kernel_.mr - 1) / kernel_.mr;
  const EvenSplit split(rows.count(), tiles);
  for (int64_t column = columns.begin; column < columns.end; column += kernel_.nr)
    for (int64_t t = 0; t < tiles; ++t)
      use(Range{rows.begin + split.Begin(t), rows.begin + split.Begin(t + 1)},
          Range{column, std::min(column + kernel_.nr, columns.end)});
}

void LowRankF32Worker::Load(Range rows, int64_t column, int64_t count) {
  for (int64_t row = rows.begin; row < rows.end; ++row)
    job_.kernels.convert->to_f32(args_.dtype, count, At(args_.x, args_.ldx, row, column),
                                 x_ + (row - rows.begin) * ldx_);
}

void LowRankF32Worker::Down(Range strip) {
  for (int64_t begin = 0; begin < weight_.k; begin += block_) {
    const int64_t depth = std::min(block_, weight_.k - begin);
    if (copies_) Load(strip, begin, depth);
    ForEachTile(strip, share_.down, [&](Range rows, Range columns) {
      GemmF32Args g{};
      g.m = static_cast<int32_t>(rows.count());
      g.n = static_cast<int32_t>(Padded(columns));
      g.k = static_cast<int32_t>(depth);
      g.a = copies_ ? x_ + (rows.begin - strip.begin) * ldx_
                    : reinterpret_cast<const float*>(At(args_.x, args_.ldx, rows.begin, begin));
      g.lda = copies_ ? ldx_ : args_.ldx;
      g.panel = weight_.down + columns.begin * weight_.k + begin * kernel_.nr;
      g.panel_stride = weight_.k * kernel_.nr;
      g.bias = begin == 0 ? zeros_ : nullptr;
      g.c = H(rows.begin) + columns.begin;
      g.ldc = h_stride_;
      kernel_.tile(g);
    });
  }
}

void LowRankF32Worker::UpTile(Range rows, Range columns) {
  char* y = const_cast<char*>(At(args_.y, args_.ldy, rows.begin, columns.begin));
  const ConvertKernel& convert = *job_.kernels.convert;
  const int64_t ld_out = columns.count();
  GemmF32Args g{};
  g.m = static_cast<int32_t>(rows.count());
  g.n = static_cast<int32_t>(columns.count());
  g.k = static_cast<int32_t>(weight_.rank);
  g.a = H(rows.begin);
  g.lda = h_stride_;
  g.panel = weight_.up + columns.begin * weight_.rank;
  g.panel_stride = weight_.rank * kernel_.nr;
  g.bias = bias_ + (columns.begin - share_.up.begin);
  g.c = narrow() ? out_ : reinterpret_cast<float*>(y);
  g.ldc = narrow() ? ld_out : args_.ldy;
  if (args_.residual != nullptr) {
    const char* source = At(args_.residual, args_.ldr, rows.begin, columns.begin);
    g.residual = narrow() ? residual_ : reinterpret_cast<const float*>(source);
    g.ldr = narrow() ? ld_out : args_.ldr;
    for (int64_t i = 0; narrow() && i < g.m; ++i)
      convert.to_f32(args_.dtype, g.n, source + static_cast<size_t>(i * args_.ldr) * 2, residual_ + i * ld_out);
  }
  kernel_.tile(g);
  if (args_.activation == Activation::kNone && !narrow()) return;
  for (int64_t i = 0; i < g.m; ++i) {
    float* c = g.c + i * g.ldc;
    if (args_.activation != Activation::kNone) job_.kernels.activation->apply(args_.activation, g.n, c);
    if (narrow()) convert.from_f32(args_.dtype, g.n, c, y + static_cast<size_t>(i * args_.ldy) * 2);
  }
}

void LowRankF32Worker::Up(Range strip) {
  ForEachTile(strip, share_.up, [&](Range rows, Range columns) { UpTile(rows, columns); });
}

void LowRankF32Worker::Run(Scratch& scratch) {
  Take(scratch);
  const EvenSplit strips(share_.rows.count(), strips_);
  for (int64_t i = 0; i < strips_; ++i) {
    const Range strip{share_.rows.begin + strips.Begin(i), share_.rows.begin + strips.Begin(i + 1)};
    strip_begin_ = strip.begin;
    if (share_.down.count() > 0) Down(strip);
    if (share_.up.count() > 0) Up(strip);
  }
}

}  // namespace tersor

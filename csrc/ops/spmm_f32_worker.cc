#include "ops/spmm_f32_worker.h"

#include <algorithm>
#include <cstring>

#include "ops/packed_s8.h"

namespace tersor {

SpmmF32Worker::SpmmF32Worker(const SpmmF32Job& job, Range rows, Range bands)
    : job_(job), args_(job.args), weight_(job.weight), kernel_(*job.weight.kernel), rows_(rows), bands_(bands) {}

size_t SpmmF32Worker::ScratchBytes() const {
  const size_t depth = static_cast<size_t>(kernel_.depth);
  return kPanelBytesSpmmF32 + Scratch::Padded<float>(static_cast<size_t>(BeginOf(bands_at_once())) * strip()) +
         Scratch::Padded<float>(strip() * depth) +
         Scratch::Padded<float>(static_cast<size_t>(BeginOf(bands_.count()))) +
         2 * Scratch::Padded<float>(narrow() ? strip() * kBandRowsF32 : 0);
}

void SpmmF32Worker::Take(Scratch& scratch) {
  panel_ = scratch.Take<float>(kPanelBytesSpmmF32 / sizeof(float));
  acc_ = scratch.Take<float>(static_cast<size_t>(BeginOf(bands_at_once())) * strip());
  x_ = scratch.Take<float>(strip() * static_cast<size_t>(kernel_.depth));
  bias_ = scratch.Take<float>(static_cast<size_t>(BeginOf(bands_.count())));
  std::fill_n(bias_, BeginOf(bands_.count()), 0.0f);
  const int64_t begin = BeginOf(bands_.begin), end = std::min(BeginOf(bands_.end), weight_.n);
  if (args_.bias != nullptr) std::copy(args_.bias + begin, args_.bias + end, bias_);
  if (!narrow()) return;
  out_ = scratch.Take<float>(strip() * kBandRowsF32);
  residual_ = scratch.Take<float>(strip() * kBandRowsF32);
}

void SpmmF32Worker::LoadRow(int64_t row, int64_t column, int64_t count, float* to) const {
  const char* x = static_cast<const char*>(args_.x) + static_cast<size_t>(row * args_.ldx + column) * element();
  job_.kernels.convert->to_f32(args_.dtype, count, x, to);
}

void SpmmF32Worker::FillPanel(Range rows, int64_t block) {
  const int64_t column = block * kernel_.depth, live = weight_.BlockDepth(block);
  if (rows.count() == 1) {
    LoadRow(rows.begin, column, live, panel_);
    panel_[kernel_.depth] = 0.0f;
    return;
  }
  const int64_t tokens = RoundUp(rows.count(), 16), depth = RoundUp(live, 16);
  std::fill_n(panel_ + static_cast<size_t>(kernel_.depth) * strip(), strip(), 0.0f);
  const float* x = static_cast<const float*>(args_.x) + rows.begin * args_.ldx + column;
  int64_t ldx = args_.ldx;
  if (narrow() || tokens != rows.count() || depth != live) {
    std::memset(x_, 0, static_cast<size_t>(tokens * depth) * sizeof(float));
    for (int64_t i = 0; i < rows.count(); ++i) LoadRow(rows.begin + i, column, live, x_ + i * depth);
    x = x_;
    ldx = depth;
  }
  kernel_.pack(static_cast<int32_t>(tokens), static_cast<int32_t>(depth), x, ldx, panel_);
}

// The lines of y come into the cache while the band is multiplied for the last time.
void SpmmF32Worker::FetchOutput(Range rows, int64_t band) const {
  const int64_t column = BeginOf(band), live = std::min<int64_t>(kBandRowsF32, weight_.n - column);
  const size_t bytes = static_cast<size_t>(live) * element();
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const char* y = static_cast<const char*>(args_.y) + static_cast<size_t>(i * args_.ldy + column) * element();
    for (size_t at = 0; at < bytes; at += kCacheLine) __builtin_prefetch(y + at, 1);
  }
}

void SpmmF32Worker::FinishRow(const SpmmF32FinishArgs& f, const float* acc) const {
  for (int32_t j = 0; j < f.n; ++j) f.c[j] = f.residual == nullptr ? acc[j] : acc[j] + f.residual[j];
}

void SpmmF32Worker::FinishBand(Range rows, int64_t band, const float* acc) {
  const int64_t column = BeginOf(band);
  char* y = static_cast<char*>(args_.y) + static_cast<size_t>(rows.begin * args_.ldy + column) * element();
  const ConvertKernel& convert = *job_.kernels.convert;
  SpmmF32FinishArgs f{};
  f.m = static_cast<int32_t>(rows.count());
  f.n = static_cast<int32_t>(std::min<int64_t>(kBandRowsF32, weight_.n - column));
  f.acc = acc;
  f.c = narrow() ? out_ : reinterpret_cast<float*>(y);
  f.ldc = narrow() ? kBandRowsF32 : args_.ldy;
  if (args_.residual != nullptr) {
    const char* source =
        static_cast<const char*>(args_.residual) + static_cast<size_t>(rows.begin * args_.ldr + column) * element();
    f.residual = narrow() ? residual_ : reinterpret_cast<const float*>(source);
    f.ldr = narrow() ? kBandRowsF32 : args_.ldr;
    for (int64_t i = 0; narrow() && i < f.m; ++i)
      convert.to_f32(args_.dtype, f.n, source + static_cast<size_t>(i * args_.ldr) * 2, residual_ + i * kBandRowsF32);
  }
  if (f.m == 1)
    FinishRow(f, acc);
  else
    kernel_.finish(f);
  if (args_.activation == Activation::kNone && !narrow()) return;
  for (int64_t i = 0; i < f.m; ++i) {
    float* c = f.c + i * f.ldc;
    if (args_.activation != Activation::kNone) job_.kernels.activation->apply(args_.activation, f.n, c);
    if (narrow()) convert.from_f32(args_.dtype, f.n, c, y + static_cast<size_t>(i * args_.ldy) * 2);
  }
}

void SpmmF32Worker::RunStrip(Range rows) {
  const bool one = rows.count() == 1;
  const int64_t stride = one ? 1 : kernel_.strip;
  for (int64_t begin = bands_.begin; begin < bands_.end; begin += kBandsAtOnce) {
    const int64_t end = std::min(begin + kBandsAtOnce, bands_.end);
    const auto acc = [&](int64_t band) { return acc_ + BeginOf(band - begin) * stride; };
    for (int64_t block = 0; block < weight_.layout.blocks; ++block) {
      FillPanel(rows, block);
      for (int64_t band = begin; band < end; ++band) {
        SpmmF32BandArgs args = weight_.Band(block, band);
        args.tokens = static_cast<int32_t>(rows.count());
        args.panel = panel_;
        args.bias = block == 0 ? bias_ + BeginOf(band - bands_.begin) : nullptr;
        args.acc = acc(band);
        if (block + 1 == weight_.layout.blocks) FetchOutput(rows, band);
        one ? kernel_.row(args) : kernel_.multiply(args);
        if (block + 1 == weight_.layout.blocks) FinishBand(rows, band, acc(band));
      }
    }
  }
}

void SpmmF32Worker::Run(Scratch& scratch) {
  Take(scratch);
  for (int64_t row = rows_.begin; row < rows_.end; row += kernel_.strip)
    RunStrip({row, std::min(row + kernel_.strip, rows_.end)});
}

}  // namespace tersor

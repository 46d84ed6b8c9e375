#include "ops/spmm_s8_worker.h"

#include <algorithm>
#include <cstring>

#include "ops/packed_s8.h"

namespace tersor {

SpmmS8Worker::SpmmS8Worker(const SpmmS8Job& job, Range rows, Range bands)
    : job_(job),
      args_(job.args),
      weight_(job.weight),
      kernel_(*job.weight.kernel),
      input_{job.args, job.weight.k, job.weight.input_scale, job.kernels},
      rows_(rows),
      bands_(bands) {
  k_pad_ = RoundUp(weight_.k, 64);
  lda_ = (k_pad_ / 64 | 1) * 64;  // an odd number of cache lines: 16 rows never fall into the same few cache sets
}

size_t SpmmS8Worker::ScratchBytes() const {
  const size_t strip = static_cast<size_t>(kernel_.strip), columns = static_cast<size_t>(BeginOf(bands_.count()));
  return Scratch::Padded<uint8_t>(strip * static_cast<size_t>(lda_)) + ScratchPanels() +
         Scratch::Padded<int32_t>(static_cast<size_t>(BeginOf(bands_at_once())) * strip) +
         Scratch::Padded<float>(strip) + Scratch::Padded<int32_t>(strip) + Scratch::Padded<float>(columns) +
         (input_.rewrites() ? Scratch::Padded<float>(static_cast<size_t>(weight_.k)) : 0) +
         (narrow() ? 2 * Scratch::Padded<float>(strip * kBandRowsS8) : 0);
}

// A 16-bit offset into any of the panels stays inside.
size_t SpmmS8Worker::ScratchPanels() const {
  const int64_t blocks = std::min(weight_.layout.blocks, kBlocksAtOnce);
  return static_cast<size_t>(blocks - 1) * panel_bytes() + 2 * kPanelBytesSpmmS8;
}

void SpmmS8Worker::Take(Scratch& scratch) {
  const size_t strip = static_cast<size_t>(kernel_.strip), columns = static_cast<size_t>(BeginOf(bands_.count()));
  packed_ = scratch.Take<uint8_t>(ScratchPanels());
  panels_ = packed_ + kPanelBytesSpmmS8;
  acc_ = scratch.Take<int32_t>(static_cast<size_t>(BeginOf(bands_at_once())) * strip);
  q_ = scratch.Take<uint8_t>(strip * static_cast<size_t>(lda_));
  row_scale_ = scratch.Take<float>(strip);
  row_zero_ = scratch.Take<int32_t>(strip);
  bias_ = scratch.Take<float>(columns);
  std::fill_n(bias_, columns, 0.0f);
  const int64_t begin = BeginOf(bands_.begin), end = std::min(BeginOf(bands_.end), weight_.n);
  if (args_.bias != nullptr) std::copy(args_.bias + begin, args_.bias + end, bias_);
  if (input_.rewrites()) row_f32_ = scratch.Take<float>(static_cast<size_t>(weight_.k));
  if (narrow()) {
    out_ = scratch.Take<float>(strip * kBandRowsS8);
    residual_ = scratch.Take<float>(strip * kBandRowsS8);
  }
}

void SpmmS8Worker::Pack(int64_t tokens, Range blocks) {
  for (int64_t block = blocks.begin; block < blocks.end; ++block)
    weight_.PackPanel(block, tokens, q_ + block * weight_.layout.depth, lda_, packed_,
                      panels_ + static_cast<size_t>(block - blocks.begin) * panel_bytes());
}

void SpmmS8Worker::MultiplyBand(int64_t tokens, Range blocks, int64_t band, int32_t* acc) {
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    SpmmS8Args args = weight_.Band(block, band);
    args.tokens = static_cast<int32_t>(tokens);
    args.panel = panels_ + static_cast<size_t>(block - blocks.begin) * panel_bytes();
    args.acc = acc;
    if (block + 1 == weight_.layout.blocks) {
      args.y = reinterpret_cast<float*>(acc);
      args.row_scale = row_scale_;
      args.row_zero = row_zero_;
      args.bias = bias_ + BeginOf(band - bands_.begin);
    }
    weight_.Multiply(args);
  }
}

// The lines of y come into the cache while the band is multiplied for the last time.
void SpmmS8Worker::FetchOutput(Range rows, int64_t band) const {
  const int64_t column = BeginOf(band), live = std::min<int64_t>(kBandRowsS8, weight_.n - column);
  const size_t bytes = ElementBytes(args_.dtype);
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const char* y = static_cast<const char*>(args_.y) + static_cast<size_t>(i * args_.ldy + column) * bytes;
    for (size_t at = 0; at < static_cast<size_t>(live) * bytes; at += kCacheLine) __builtin_prefetch(y + at, 1);
  }
}

void SpmmS8Worker::FinishBand(Range rows, int64_t band, const int32_t* acc) {
  const size_t bytes = ElementBytes(args_.dtype);
  const int64_t column = BeginOf(band);
  char* y = static_cast<char*>(args_.y) + static_cast<size_t>(rows.begin * args_.ldy + column) * bytes;

  SpmmS8FinishArgs f{};
  f.m = static_cast<int32_t>(rows.count());
  f.n = static_cast<int32_t>(std::min<int64_t>(kBandRowsS8, weight_.n - column));
  f.y = reinterpret_cast<const float*>(acc);
  f.c = narrow() ? out_ : reinterpret_cast<float*>(y);
  f.ldc = narrow() ? kBandRowsS8 : args_.ldy;
  const ConvertKernel& convert = *job_.kernels.convert;
  if (args_.residual != nullptr) {
    const char* source =
        static_cast<const char*>(args_.residual) + static_cast<size_t>(rows.begin * args_.ldr + column) * bytes;
    f.residual = narrow() ? residual_ : reinterpret_cast<const float*>(source);
    f.ldr = narrow() ? kBandRowsS8 : args_.ldr;
    for (int64_t i = 0; narrow() && i < f.m; ++i)
      convert.to_f32(args_.dtype, f.n, source + static_cast<size_t>(i * args_.ldr) * 2, residual_ + i * kBandRowsS8);
  }
  kernel_.finish(f);
  if (args_.activation == Activation::kNone && !narrow()) return;
  for (int64_t i = 0; i < f.m; ++i) {
    float* c = f.c + i * f.ldc;
    if (args_.activation != Activation::kNone) job_.kernels.activation->apply(args_.activation, f.n, c);
    if (narrow()) convert.from_f32(args_.dtype, f.n, c, y + static_cast<size_t>(i * args_.ldy) * 2);
  }
}

void SpmmS8Worker::RunStrip(Range rows) {
  const int64_t tokens = rows.count(), count = weight_.layout.blocks;
  const bool shallow = count <= kBlocksAtOnce;  // the panels are packed once, and a band is finished while it is hot
  if (shallow) Pack(tokens, {0, count});
  for (int64_t begin = bands_.begin; begin < bands_.end; begin += bands_at_once()) {
    const int64_t end = std::min(begin + bands_at_once(), bands_.end);
    const auto acc = [&](int64_t band) { return acc_ + BeginOf(band - begin) * kernel_.strip; };
    for (int64_t block = 0; block < count; block += kBlocksAtOnce) {
      const Range blocks = {block, std::min(block + kBlocksAtOnce, count)};
      if (!shallow) Pack(tokens, blocks);
      for (int64_t band = begin; band < end; ++band) {
        if (shallow) FetchOutput(rows, band);
        MultiplyBand(tokens, blocks, band, acc(band));
      }
    }
    for (int64_t band = begin; band < end; ++band) FinishBand(rows, band, acc(band));
  }
}

void SpmmS8Worker::Run(Scratch& scratch) {
  Take(scratch);
  const EvenSplit strips(rows_.count(), (rows_.count() + kernel_.strip - 1) / kernel_.strip);
  for (int64_t at = 0, strip = 0; at < rows_.count(); ++strip) {
    const Range rows = {rows_.begin + at, rows_.begin + strips[strip].end};
    const int64_t tokens = rows.count(), dead = RoundUp(tokens, 16) - tokens;
    input_.Quantize(rows, {q_, lda_, k_pad_, row_scale_, row_zero_}, row_f32_);
    std::memset(q_ + tokens * lda_, 0, static_cast<size_t>(dead * lda_));
    std::fill_n(row_scale_ + tokens, dead, 0.0f);
    std::fill_n(row_zero_ + tokens, dead, 0);
    RunStrip(rows);
    at += tokens;
  }
}

}  // namespace tersor

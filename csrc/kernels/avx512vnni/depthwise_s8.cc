// Depthwise filters, 64 channels at a time. Four pixels are interleaved to [channel][4] bytes, and one vpdpbusd then
// does four taps of 16 channels. In register r lies, per 128-bit lane l, channel 16 l + 4 r + (0 to 3): packing the
// results to bytes, lane by lane, puts the channels back in order.
//
// Weights: per block of 64 channels, forms of [4 registers][16 channels][4] int8. First the taps in groups of four;
// then, of filters of width 3 and 5, per row of the filter the forms for neighbouring outputs that meet the same
// pixels. Exact: vpdpbusd (unsigned x signed) sums into int32 and never saturates.
#include "kernels/avx512vnni/depthwise_s8.h"

namespace tersor::avx512vnni {
namespace {

int32_t FlatForms(int32_t taps) { return (taps + 3) / 4; }

int32_t SlidingForms(int32_t kernel_h, int32_t kernel_w) {
  return kernel_w == 3 ? kernel_h * Sliding<3>::kForms : kernel_w == 5 ? kernel_h * Sliding<5>::kForms : 0;
}

int32_t BlockBytes(int32_t kernel_h, int32_t kernel_w) {
  return (FlatForms(kernel_h * kernel_w) + SlidingForms(kernel_h, kernel_w)) * kFormBytes;
}

size_t Bytes(int32_t channels, int32_t kernel_h, int32_t kernel_w) {
  return static_cast<size_t>((channels + kBlock - 1) / kBlock) * static_cast<size_t>(BlockBytes(kernel_h, kernel_w));
}

// Where a form holds what meets pixel 0 to 3 of a group, for channel c of a block.
int32_t Place(int32_t c, int32_t pixel) { return (c % 16 / 4) * 64 + (c / 16) * 16 + c % 4 * 4 + pixel; }

// The taps of row y, shifted by `output` pixels, over the groups of four pixels that the outputs share.
template <int32_t kWidth>
void PackSliding(int32_t c, int32_t y, const int8_t* row, char* forms) {
  using S = Sliding<kWidth>;
  for (int32_t group = 0; group < S::kGroups; ++group)
    for (int32_t output = 0; output < S::kOutputs; ++output) {
      char* form = forms + (y * S::kForms + group * S::kOutputs + output) * kFormBytes;
      for (int32_t pixel = 0; pixel < 4; ++pixel) {
        const int32_t tap = 4 * group + pixel - output;
        if (tap >= 0 && tap < kWidth) form[Place(c, pixel)] = static_cast<char>(row[tap]);
      }
    }
}

void Pack(int32_t channels, int32_t kernel_h, int32_t kernel_w, const int8_t* w, void* weights) {
  std::memset(weights, 0, Bytes(channels, kernel_h, kernel_w));
  const int32_t taps = kernel_h * kernel_w;
  for (int32_t c = 0; c < channels; ++c, w += taps) {
    char* block = static_cast<char*>(weights) + c / kBlock * BlockBytes(kernel_h, kernel_w);
    for (int32_t t = 0; t < taps; ++t) block[t / 4 * kFormBytes + Place(c % kBlock, t % 4)] = static_cast<char>(w[t]);
    char* sliding = block + FlatForms(taps) * kFormBytes;
    for (int32_t y = 0; y < kernel_h; ++y) {
      if (kernel_w == 3) PackSliding<3>(c % kBlock, y, w + 3 * y, sliding);
      if (kernel_w == 5) PackSliding<5>(c % kBlock, y, w + 5 * y, sliding);
    }
  }
}

void Unpack(int32_t channels, int32_t kernel_h, int32_t kernel_w, const void* weights, int8_t* w) {
  const int32_t taps = kernel_h * kernel_w;
  for (int32_t c = 0; c < channels; ++c, w += taps) {
    const char* block = static_cast<const char*>(weights) + c / kBlock * BlockBytes(kernel_h, kernel_w);
    for (int32_t t = 0; t < taps; ++t) w[t] = static_cast<int8_t>(block[t / 4 * kFormBytes + Place(c % kBlock, t % 4)]);
  }
}

// One output pixel at a time, any filter.
template <typename V, typename Out>
void FlatPixels(const DepthwiseS8Args& g, int32_t begin, const char* weights, const Out& out) {
  const int32_t taps = g.kernel_h * g.kernel_w;
  for (int32_t p = begin; p < g.pixels; ++p) {
    Quads<V> acc;
    acc.Clear();
    int32_t y = 0, x = 0;
    for (int32_t t = 0; t < taps; t += 4) {
      typename V::I pixel[4];
      for (int32_t i = 0; i < 4; ++i) {
        pixel[i] = V::Load(g.rows[y] + p * g.pixel + x * g.tap);
        if (t + i + 1 < taps && ++x == g.kernel_w) ++y, x = 0;  // beyond the last tap the weights are zeros
      }
      acc.Add(Quads<V>::Interleave(pixel), weights + t / 4 * kFormBytes);
    }
    out(p, acc);
  }
}

// As many neighbouring outputs as share pixels; returns how many pixels are done.
template <typename V, int32_t kWidth, typename Out>
int32_t SlidingPixels(const DepthwiseS8Args& g, const char* weights, const Out& out) {
  using S = Sliding<kWidth>;
  int32_t p = 0;
  for (; p + S::kOutputs <= g.pixels; p += S::kOutputs) {
    Quads<V> acc[S::kOutputs];
#pragma GCC unroll 4
    for (int32_t i = 0; i < S::kOutputs; ++i) acc[i].Clear();
    const char* form = weights;
    for (int32_t y = 0; y < g.kernel_h; ++y) {
      const uint8_t* from = g.rows[y] + p * g.pixel;
#pragma GCC unroll 2
      for (int32_t group = 0; group < S::kGroups; ++group) {
        typename V::I pixel[4];
#pragma GCC unroll 4
        for (int32_t i = 0; i < 4; ++i) pixel[i] = V::Load(from + (4 * group + i) * g.tap);
        const Quads<V> quads = Quads<V>::Interleave(pixel);
#pragma GCC unroll 4
        for (int32_t i = 0; i < S::kOutputs; ++i, form += kFormBytes) acc[i].Add(quads, form);
      }
    }
#pragma GCC unroll 4
    for (int32_t i = 0; i < S::kOutputs; ++i) out(p + i, acc[i]);
  }
  return p;
}

template <typename V, typename Out>
void Block(const DepthwiseS8Args& g, const char* weights, const Out& out) {
  const char* sliding = weights + FlatForms(g.kernel_h * g.kernel_w) * kFormBytes;
  int32_t done = 0;
  if (g.pixel == g.tap && g.kernel_w == 3) done = SlidingPixels<V, 3>(g, sliding, out);
  if (g.pixel == g.tap && g.kernel_w == 5) done = SlidingPixels<V, 5>(g, sliding, out);
  FlatPixels<V>(g, done, weights, out);
}

// The channels of a block in registers as narrow as they fit.
template <template <typename> class Out, typename... Args>
void Channels(const DepthwiseS8Args& g, const char* weights, int32_t live, const Args&... args) {
  if (live > 32)
    Block<Lanes4>(g, weights, Out<Lanes4>(live, args...));
  else if (live > 16)
    Block<Lanes2>(g, weights, Out<Lanes2>(live, args...));
  else
    Block<Lanes1>(g, weights, Out<Lanes1>(live, args...));
}

void Row(const DepthwiseS8Args& g) {
  Channels<Sums>(g, static_cast<const char*>(g.weights), g.channels, g.acc, g.ld_acc);
}

void RowBytes(const DepthwiseS8Args& g, const FinishS8Args& f) {
  Channels<FinishedBytes>(g, static_cast<const char*>(g.weights), g.channels, f);
}

}  // namespace

const DepthwiseS8Kernel& DepthwiseS8() {
  static constexpr DepthwiseS8Kernel kernel = {"depthwise_s8_avx512vnni", Bytes, Pack, Unpack, Row, RowBytes};
  return kernel;
}

}  // namespace tersor::avx512vnni

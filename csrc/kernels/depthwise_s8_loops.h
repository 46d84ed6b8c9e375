// A depthwise filter as plain loops over blocks of channels. Weights: [channel block][taps][64] int16, zero padded.
// Exact: a product lies in [-32385, 32385] and fits int16; sums are int32. Include inside an anonymous namespace of
// kernels/<isa>/depthwise_s8.cc, after <cstring>.

constexpr int32_t kBlock = static_cast<int32_t>(kDepthwiseBlock);

inline int32_t Blocks(int32_t channels) { return (channels + kBlock - 1) / kBlock; }

inline size_t DepthwiseBytes(int32_t channels, int32_t kernel_h, int32_t kernel_w) {
  return static_cast<size_t>(Blocks(channels)) * kBlock * sizeof(int16_t) * static_cast<size_t>(kernel_h * kernel_w);
}

inline size_t WeightIndex(int32_t channel, int32_t taps, int32_t tap) {
  return (static_cast<size_t>(channel / kBlock) * static_cast<size_t>(taps) + static_cast<size_t>(tap)) * kBlock +
         static_cast<size_t>(channel % kBlock);
}

inline void PackDepthwise(int32_t channels, int32_t kernel_h, int32_t kernel_w, const int8_t* w, void* weights) {
  std::memset(weights, 0, DepthwiseBytes(channels, kernel_h, kernel_w));
  const int32_t taps = kernel_h * kernel_w;
  for (int32_t c = 0; c < channels; ++c)
    for (int32_t t = 0; t < taps; ++t) static_cast<int16_t*>(weights)[WeightIndex(c, taps, t)] = *w++;
}

inline void UnpackDepthwise(int32_t channels, int32_t kernel_h, int32_t kernel_w, const void* weights, int8_t* w) {
  const int32_t taps = kernel_h * kernel_w;
  for (int32_t c = 0; c < channels; ++c)
    for (int32_t t = 0; t < taps; ++t)
      *w++ = static_cast<int8_t>(static_cast<const int16_t*>(weights)[WeightIndex(c, taps, t)]);
}

inline void DepthwiseRow(const DepthwiseS8Args& g) {
  const int16_t* weights = static_cast<const int16_t*>(g.weights);
  const int32_t taps = g.kernel_h * g.kernel_w;
  for (int32_t block = 0; block < Blocks(g.channels); ++block, weights += taps * kBlock)
    for (int32_t p = 0; p < g.pixels; ++p) {
      int32_t sums[kBlock] = {};
      const int16_t* w = weights;
      for (int32_t y = 0; y < g.kernel_h; ++y) {
        const uint8_t* x = g.rows[y] + p * g.pixel + block * kBlock;
        for (int32_t t = 0; t < g.kernel_w; ++t, x += g.tap, w += kBlock)
          for (int32_t c = 0; c < kBlock; ++c) sums[c] += static_cast<int16_t>(x[c] * w[c]);
      }
      std::memcpy(g.acc + p * g.ld_acc + block * kBlock, sums, sizeof sums);
    }
}

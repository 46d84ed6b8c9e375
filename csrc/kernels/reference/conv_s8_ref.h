// The definitions of convolution, pooling and addition on bytes; kernels equal them bit for bit.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/reference/linear_s8_ref.h"
#include "tersor/conv_s8.h"

namespace tersor::reference {

// Without gelu and silu, whose definition is the activation kernels' own.
inline float ConvActivate(ConvActivation activation, float v) {
  const auto clamp = [](float value, float low, float high) {
    value = low > value ? low : value;  // NaN stays
    return high < value ? high : value;
  };
  switch (activation) {
    case ConvActivation::kRelu:
      return 0.0f > v ? 0.0f : v;
    case ConvActivation::kRelu6:
      return clamp(v, 0.0f, 6.0f);
    case ConvActivation::kHardSwish:
      return v * clamp(v + 3.0f, 0.0f, 6.0f) * 0x1.555556p-3f;
    default:
      return v;
  }
}

inline float Value(uint8_t q, const Quantized& as) { return static_cast<float>(q - as.zero_point) * as.scale; }

inline uint8_t Requantize(float v, const Quantized& as) { return QuantizeOne(v, 1.0f / as.scale, as.zero_point); }

// acc [batch][out_h][out_w][out_channels]: the sums of w * (x - zero point), where x is exactly 0 beyond its border.
// w [out_channels][kernel_h][kernel_w][in_channels / groups].
inline std::vector<int32_t> ConvSums(const ConvShape& s, int64_t batch, int64_t height, int64_t width, const uint8_t* x,
                                     int32_t zero_point, const int8_t* w) {
  const int64_t out_h = s.OutHeight(height), out_w = s.OutWidth(width), deep = s.in_channels / s.groups;
  std::vector<int32_t> acc;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t p = 0; p < out_h * out_w; ++p)
      for (int64_t n = 0; n < s.out_channels; ++n) {
        const int64_t first = n / (s.out_channels / s.groups) * deep;
        int32_t sum = 0;
        for (int64_t ky = 0; ky < s.kernel_h; ++ky)
          for (int64_t kx = 0; kx < s.kernel_w; ++kx) {
            const int64_t iy = p / out_w * s.stride_h - s.pad_top + ky * s.dilation_h;
            const int64_t ix = p % out_w * s.stride_w - s.pad_left + kx * s.dilation_w;
            if (iy < 0 || iy >= height || ix < 0 || ix >= width) continue;
            for (int64_t c = 0; c < deep; ++c)
              sum += (x[((b * height + iy) * width + ix) * s.in_channels + first + c] - zero_point) *
                     w[((n * s.kernel_h + ky) * s.kernel_w + kx) * deep + c];
          }
        acc.push_back(sum);
      }
  return acc;
}

// What one sum becomes.
inline float ConvValue(int32_t sum, float x_scale, float w_scale, float bias) {
  return static_cast<float>(sum) * (x_scale * w_scale) + bias;
}

// Of one window of one channel; `inside` are the values that lie in the input.
inline uint8_t PoolOne(Pooling pooling, const std::vector<uint8_t>& inside, int64_t whole, const Quantized& x_as,
                       const Quantized& y_as) {
  int32_t sum = 0;
  uint8_t most = 0;
  for (uint8_t q : inside) {
    sum += q - x_as.zero_point;
    most = q > most ? q : most;
  }
  if (pooling == Pooling::kMax) return most;
  const float divisor = static_cast<float>(pooling == Pooling::kAverage ? whole : static_cast<int64_t>(inside.size()));
  return Requantize(static_cast<float>(sum) * (x_as.scale / divisor), y_as);
}

}  // namespace tersor::reference

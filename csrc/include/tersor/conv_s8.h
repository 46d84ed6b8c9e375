// Convolution, pooling and addition on 8-bit tensors that lie channels last: [batch][height][width][channels] bytes
// with one scale and zero point each. docs/conv.md has the numeric contract.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "tersor/executor.h"
#include "tersor/types.h"

namespace tersor {

// The codes of Activation, and what only convolutions have.
enum class ConvActivation : int32_t {
  kNone = 0,
  kRelu = 1,
  kGelu = 2,
  kGeluTanh = 3,
  kSilu = 4,
  kRelu6 = 5,
  kHardSwish = 6
};
constexpr int32_t kConvActivationCount = 7;

// A filter's extents and where it is applied. All members count elements; a window beyond the input meets exact zeros.
struct ConvShape {
  int64_t in_channels, out_channels, groups;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t dilation_h, dilation_w;
  int64_t pad_top, pad_left, pad_bottom, pad_right;

  int64_t depth() const { return kernel_h * kernel_w * (in_channels / groups); }
  int64_t OutHeight(int64_t height) const {
    return (height + pad_top + pad_bottom - dilation_h * (kernel_h - 1) - 1) / stride_h + 1;
  }
  int64_t OutWidth(int64_t width) const {
    return (width + pad_left + pad_right - dilation_w * (kernel_w - 1) - 1) / stride_w + 1;
  }
};

// --- Packing: one relocatable block, a cache for the CPU it was packed on. Throws Error on a shape that does not
// exist.

TERSOR_API size_t PackedBytesConvS8(const ConvShape& shape);
// weight [out_channels][kernel_h][kernel_w][in_channels / groups] in [-127, 127], scale [out_channels] finite and > 0.
TERSOR_API void PackConvS8(const ConvShape& shape, const int8_t* weight, const float* scale, void* packed,
                           size_t packed_bytes);
TERSOR_API void UnpackConvS8(const void* packed, size_t packed_bytes, int8_t* weight, float* scale);
TERSOR_API ConvShape ShapeOfPackedConvS8(const void* packed, size_t packed_bytes);
// The id of the matrix or depthwise kernel that reads the block.
TERSOR_API std::string KernelOfPackedConvS8(const void* packed, size_t packed_bytes);

// --- The ops. `Quantized` says what the bytes of a tensor stand for: scale * (q - zero_point).

struct Quantized {
  float scale;         // > 0, normal
  int32_t zero_point;  // [0, 255]
};

struct ConvS8Args {
  int64_t batch, height, width;
  const uint8_t* x;  // [batch][height][width][in_channels]
  Quantized x_as;
  const void* packed;
  size_t packed_bytes;
  const float* bias;        // [out_channels], or null
  const uint8_t* residual;  // the shape of y, or null; added before the activation
  Quantized residual_as;
  ConvActivation activation;
  // Exactly one of the two outputs: [batch][OutHeight][OutWidth][out_channels].
  float* y_f32;
  uint8_t* y;
  Quantized y_as;
};
TERSOR_API void ConvS8(const ConvS8Args& args, const Executor& executor);

enum class Pooling : int32_t { kMax = 0, kAverage = 1, kAverageOfInside = 2 };

// kMax keeps x_as: y_as is ignored. kAverage counts the padding (as zeros), kAverageOfInside does not.
struct PoolS8Args {
  int64_t batch, height, width;
  ConvShape window;  // in_channels = out_channels = groups
  Pooling pooling;
  const uint8_t* x;
  Quantized x_as;
  uint8_t* y;
  Quantized y_as;
};
TERSOR_API void PoolS8(const PoolS8Args& args, const Executor& executor);

// y = act(a + b) over `count` elements; b may be null.
struct AddS8Args {
  int64_t count;
  const uint8_t* a;
  Quantized a_as;
  const uint8_t* b;
  Quantized b_as;
  ConvActivation activation;
  float* y_f32;  // exactly one of the two
  uint8_t* y;
  Quantized y_as;
};
TERSOR_API void AddS8(const AddS8Args& args, const Executor& executor);

// Float pictures to bytes, channels last. A picture that holds NaN or infinity becomes zeros and has scale NaN.
struct QuantizeImagesArgs {
  int64_t batch, channels, height, width;
  const float* x;
  bool channels_last;  // how x lies: [batch][height][width][channels], else [batch][channels][height][width]
  uint8_t* q;          // [batch][height][width][channels]
  float x_scale;       // > 0: for every picture; 0: by the range of each
  int32_t x_zero_point;
  Quantized* as;  // [batch]: written
};
TERSOR_API void QuantizeImages(const QuantizeImagesArgs& args, const Executor& executor);

}  // namespace tersor

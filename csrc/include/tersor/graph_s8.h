// A chain or graph of int8 operations that runs in one call: float pictures in, float results out, bytes between.
// docs/conv.md describes the block of bytes that holds it.
#pragma once
#include "tersor/conv_s8.h"

namespace tersor {

enum class GraphNodeKind : int32_t { kConv = 0, kPool = 1, kAdd = 2 };

// Values are counted: 0 is the graph's input, i + 1 what node i gives.
struct GraphNodeSpec {
  GraphNodeKind kind;
  int32_t input;
  int32_t other;              // kConv: the residual, or -1; kAdd: the second summand, or -1
  ConvActivation activation;  // of kConv and kAdd
  Pooling pooling;            // of kPool
  bool whole;                 // of kPool: the window is the whole picture
  Quantized as;               // what the node gives; of the last one it is not used, its values stay floats
  ConvShape shape;            // of kConv; of kPool: the window
  // Of kConv:
  const int8_t* weight;  // [out_channels][kernel_h][kernel_w][in_channels / groups]
  const float* scale;    // [out_channels]
  const float* bias;     // [out_channels], or null
};

struct GraphSpec {
  int64_t channels;  // of the input
  Quantized input;   // scale 0: each picture by its own range
  int64_t nodes;
  const GraphNodeSpec* node;  // each reads only what earlier ones give; kPool is not the last
};

// Throw Error when the graph makes no sense.
TERSOR_API size_t PackedBytesGraphS8(const GraphSpec& spec);
TERSOR_API void PackGraphS8(const GraphSpec& spec, void* packed, size_t packed_bytes);
// The weight of the kConv at `node`; bias (zeros where it has none) may be null.
TERSOR_API void UnpackGraphConvS8(const void* packed, size_t packed_bytes, int64_t node, int8_t* weight, float* scale,
                                  float* bias);
TERSOR_API ConvShape ShapeOfGraphConvS8(const void* packed, size_t packed_bytes, int64_t node);
TERSOR_API int64_t ChannelsOfGraphS8(const void* packed, size_t packed_bytes);
// The kernel id of the graph's largest convolution.
TERSOR_API std::string KernelOfGraphS8(const void* packed, size_t packed_bytes);

struct GraphExtents {
  int64_t channels, height, width;
};
// Of the result, for pictures of this height and width. Throws Error when some window does not fit.
TERSOR_API GraphExtents OutputOfGraphS8(const void* packed, size_t packed_bytes, int64_t height, int64_t width);
// Memory for the tensors of one picture while it runs. Each thread works on one picture, or all on the same.
TERSOR_API size_t ArenaBytesGraphS8(const void* packed, size_t packed_bytes, int64_t height, int64_t width);

struct GraphS8Args {
  int64_t batch, height, width;
  const float* x;
  bool channels_last;  // how x lies
  const void* packed;
  size_t packed_bytes;
  const float* bias;  // of the last convolution, in place of its own; or null
  float* y;           // [batch][height][width][channels] of OutputOfGraphS8
};
// A picture that holds NaN or infinity gives NaN everywhere.
TERSOR_API void GraphS8(const GraphS8Args& args, const Executor& executor);

}  // namespace tersor

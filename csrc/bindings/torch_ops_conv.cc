// torch.ops.tersor.graph_s8 through torch's stable C shim.
#include "bindings/torch_linear.h"
#include "tersor/graph_s8.h"

namespace {

using namespace tersor::shim;

constexpr char kName[] = "graph_s8";

// The bytes of [n][c][h][w]: as they lie, or a copy that lies channels last.
struct Images {
  Images(const Tensor& x, const int64_t* sizes) : data(static_cast<const float*>(x.data())) {
    const int64_t n = sizes[0], c = sizes[1], h = sizes[2], w = sizes[3];
    const int64_t* strides = x.strides();
    const auto lies = [&](int64_t image, int64_t channel, int64_t row, int64_t column) {
      return (n == 1 || strides[0] == image) && (c == 1 || strides[1] == channel) && (h == 1 || strides[2] == row) &&
             (w == 1 || strides[3] == column);
    };
    channels_last = lies(h * w * c, 1, w * c, c);
    if (channels_last || lies(c * h * w, h * w, w, 1)) return;
    copy = ChannelsLast(n, c, h, w, x.device());
    Check(aoti_torch_copy_(copy.get(), x.get(), 0), "copy a tensor");
    data = static_cast<const float*>(copy.data());
    channels_last = true;
  }

  static Tensor ChannelsLast(int64_t n, int64_t c, int64_t h, int64_t w, tersor::shim::Device device) {
    const int64_t sizes[] = {n, c, h, w}, strides[] = {h * w * c, 1, w * c, c};
    AtenTensorHandle handle;
    Check(aoti_torch_empty_strided(4, sizes, strides, codes.f32, device.type, device.index, &handle),
          "allocate a tensor");
    return Tensor(handle);
  }

  const float* data;
  bool channels_last;
  Tensor copy;
};

Tensor Result(const int64_t* sizes, const tersor::GraphExtents& out, const StableIValue* stack, Device device) {
  const int64_t channels = static_cast<int64_t>(stack[3]), height = static_cast<int64_t>(stack[4]);
  const int64_t width = static_cast<int64_t>(stack[5]);
  const bool flat = height == 0 && width == 0 && out.height == 1 && out.width == 1;
  if (channels != out.channels || (!flat && (height != out.height || width != out.width)))
    Fail(kName, "the result has " + std::to_string(out.channels) + " channels of " + std::to_string(out.height) +
                    " x " + std::to_string(out.width) + ", expected " + std::to_string(channels) + " of " +
                    std::to_string(height) + " x " + std::to_string(width));
  if (flat) return Empty(sizes, 2, channels, codes.f32, device);
  return Images::ChannelsLast(sizes[0], channels, height, width, device);
}

void Run(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor x(stack[0]), packed(stack[1]);
  Tensor bias(stack[2]);
  if (x.dtype() != codes.f32) FailDType(kName, "x", "float32", x.dtype());
  const int64_t* sizes = x.sizes();
  if (x.dim() != 4) Fail(kName, "x: expected shape [n, channels, height, width], got " + ShapeText(sizes, x.dim()));
  tersor::GraphS8Args args{};
  args.packed_bytes = PackedBytes(kName, packed);
  args.packed = packed.data();
  const int64_t channels = tersor::ChannelsOfGraphS8(args.packed, args.packed_bytes);
  if (sizes[1] != channels)
    Fail(kName, "x: expected " + std::to_string(channels) + " channels, got " + ShapeText(sizes, 4));
  const tersor::GraphExtents out = tersor::OutputOfGraphS8(args.packed, args.packed_bytes, sizes[2], sizes[3]);
  Tensor y = Result(sizes, out, stack, x.device());
  const Images images(x, sizes);
  args.batch = sizes[0];
  args.height = sizes[2];
  args.width = sizes[3];
  args.x = images.data;
  args.channels_last = images.channels_last;
  args.bias = BiasData(kName, bias, out.channels, codes.f32);
  args.y = static_cast<float*>(y.mutable_data());
  tersor::GraphS8(args, TorchExecutor());
  stack[0] = y.Release();
}

void Refuse(StableIValue* stack, uint64_t, uint64_t) {
  const char* const names[] = {"x", "packed", "bias"};
  const Tensor tensors[] = {Tensor(stack[0]), Tensor(stack[1]), Tensor(stack[2])};
  RefuseElsewhere(kName, tensors, names, 3);
}

struct Registration : Library {
  Registration() noexcept : Library("tersor/torch_ops_conv") {
    AddBoxed(kName,
             "graph_s8(Tensor x, Tensor packed, Tensor bias, int out_channels, int out_height, int out_width) -> "
             "Tensor",
             Run, Refuse);
  }
} registration;

}  // namespace

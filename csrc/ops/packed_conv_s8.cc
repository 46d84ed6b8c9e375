#include "ops/packed_conv_s8.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "core/registry.h"
#include "core/scratch.h"
#include "tersor/linear_s8.h"

namespace tersor {
namespace {

constexpr char kMagic[8] = {'T', 'S', 'R', 'C', '8', 'v', '1', '\0'};

struct Header {
  char magic[8];
  uint64_t bytes;
  ConvShape shape;
  uint64_t group_bytes;  // 0: a depthwise filter
  char kernel_id[64];    // of a depthwise filter, zero padded
};
static_assert(sizeof(Header) <= 256 && sizeof(ConvShape) == 13 * sizeof(int64_t), "the header fits its place");
constexpr size_t kHeaderBytes = 256;

[[noreturn]] void Fail(const std::string& what) { throw Error("packed int8 convolution: " + what); }

bool IsDepthwise(const ConvShape& s) { return s.groups > 1 && s.groups == s.in_channels && s.groups == s.out_channels; }

size_t Aligned(size_t bytes) { return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

struct DepthwiseLayout {
  size_t col_sum_at, weights_at, total;  // the scale lies behind the header
};

DepthwiseLayout LayoutOf(const DepthwiseS8Kernel& kernel, const ConvShape& s) {
  const size_t channels = static_cast<size_t>(s.in_channels);
  DepthwiseLayout layout;
  layout.col_sum_at = kHeaderBytes + Scratch::Padded<float>(channels);
  layout.weights_at = layout.col_sum_at + Scratch::Padded<int32_t>(channels);
  layout.total =
      layout.weights_at + Aligned(kernel.bytes(static_cast<int32_t>(s.in_channels), static_cast<int32_t>(s.kernel_h),
                                               static_cast<int32_t>(s.kernel_w)));
  return layout;
}

const DepthwiseS8Kernel* FindDepthwise(const char* id) {
  for (const KernelSet* set : RunnableKernelSets())
    if (set->depthwise_s8 != nullptr && std::strcmp(set->depthwise_s8->id, id) == 0) return set->depthwise_s8;
  return nullptr;
}

const Header& CheckedHeader(const void* packed, size_t packed_bytes) {
  if (packed == nullptr || packed_bytes < kHeaderBytes)
    Fail(std::to_string(packed_bytes) + " bytes are too few for its header");
  if (reinterpret_cast<uintptr_t>(packed) % alignof(Header) != 0) Fail("its address is not a multiple of 8");
  const Header& header = *static_cast<const Header*>(packed);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    Fail("these bytes are not one (or of another version of tersor); pack the weight again");
  if (header.bytes != packed_bytes || header.kernel_id[sizeof header.kernel_id - 1] != '\0')
    Fail("header says " + std::to_string(header.bytes) + " bytes, got " + std::to_string(packed_bytes));
  CheckConvShape("packed int8 convolution", header.shape);
  return header;
}

void PackDepthwise(const PackedConvView& view, const int8_t* weight, const float* scale) {
  const ConvShape& s = view.shape;
  const int64_t taps = s.kernel_h * s.kernel_w;
  for (int64_t c = 0; c < s.in_channels; ++c) {
    if (!(scale[c] > 0.0f) || !std::isfinite(scale[c]))
      Fail("scale of channel " + std::to_string(c) + " is " + std::to_string(scale[c]) +
           "; scales are finite and greater than 0");
    int32_t sum = 0;
    for (int64_t t = 0; t < taps; ++t) {
      if (weight[c * taps + t] == -128) Fail("found -128; weights lie in [-127, 127]");
      sum += weight[c * taps + t];
    }
    view.scale[c] = scale[c];
    view.col_sum[c] = sum;
  }
  view.depthwise->pack(static_cast<int32_t>(s.in_channels), static_cast<int32_t>(s.kernel_h),
                       static_cast<int32_t>(s.kernel_w), weight, view.weights);
}

}  // namespace

void CheckConvShape(const char* op, const ConvShape& s) {
  const auto fail = [op](const std::string& what) { throw Error(std::string(op) + ": " + what); };
  constexpr int64_t kMost = int64_t{1} << 24;
  const auto within = [&](const char* name, int64_t value, int64_t least) {
    if (value < least || value > kMost)
      fail(std::string(name) + "=" + std::to_string(value) + " is outside [" + std::to_string(least) + ", 2^24]");
  };
  within("in_channels", s.in_channels, 1);
  within("out_channels", s.out_channels, 1);
  within("groups", s.groups, 1);
  for (int64_t extent : {s.kernel_h, s.kernel_w}) within("kernel", extent, 1);
  for (int64_t extent : {s.stride_h, s.stride_w}) within("stride", extent, 1);
  for (int64_t extent : {s.dilation_h, s.dilation_w}) within("dilation", extent, 1);
  for (int64_t extent : {s.pad_top, s.pad_left, s.pad_bottom, s.pad_right}) within("padding", extent, 0);
  if (s.in_channels % s.groups != 0 || s.out_channels % s.groups != 0)
    fail("groups=" + std::to_string(s.groups) + " does not divide " + std::to_string(s.in_channels) + " and " +
         std::to_string(s.out_channels) + " channels");
  if (s.kernel_h * s.kernel_w > kMaxDepthS8 || s.depth() > kMaxDepthS8)
    fail("a filter of " + std::to_string(s.depth()) + " values does not fit exact int32 sums; at most " +
         std::to_string(kMaxDepthS8));
}

PackedViewS8 PackedConvView::Group(int64_t group) const {
  const char* block = weights + static_cast<size_t>(group) * group_bytes;
  uint64_t bytes;  // what the block says of itself
  std::memcpy(&bytes, block + offsetof(PackedHeaderS8, bytes), sizeof bytes);
  if (bytes > group_bytes) Fail("the matrix of group " + std::to_string(group) + " is truncated");
  const PackedViewS8 view = ViewPackedS8(block, static_cast<size_t>(bytes));
  if (view.n != shape.out_channels / shape.groups || view.k != shape.depth() || view.input_scale != nullptr)
    Fail("the matrix of group " + std::to_string(group) + " has another shape");
  return view;
}

size_t PackedBytesConvS8(const ConvShape& shape) {
  CheckConvShape("packed int8 convolution", shape);
  if (IsDepthwise(shape)) return LayoutOf(*Selected().depthwise_s8, shape).total;
  return kHeaderBytes +
         static_cast<size_t>(shape.groups) * Aligned(PackedBytesS8(shape.out_channels / shape.groups, shape.depth()));
}

void PackConvS8(const ConvShape& shape, const int8_t* weight, const float* scale, void* packed, size_t packed_bytes) {
  const size_t needed = PackedBytesConvS8(shape);
  if (packed == nullptr || weight == nullptr || scale == nullptr || packed_bytes != needed)
    Fail(std::to_string(needed) + " bytes needed, got " + std::to_string(packed_bytes));
  if (reinterpret_cast<uintptr_t>(packed) % alignof(Header) != 0) Fail("its address is not a multiple of 8");
  std::memset(packed, 0, kHeaderBytes);
  Header& header = *static_cast<Header*>(packed);
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.bytes = packed_bytes;
  header.shape = shape;
  const int64_t rows = shape.out_channels / shape.groups, depth = shape.depth();
  if (IsDepthwise(shape)) {
    std::strncpy(header.kernel_id, Selected().depthwise_s8->id, sizeof header.kernel_id - 1);
    return PackDepthwise(ViewPackedConv(packed, packed_bytes), weight, scale);
  }
  const size_t bytes = PackedBytesS8(rows, depth);
  header.group_bytes = Aligned(bytes);
  char* block = static_cast<char*>(packed) + kHeaderBytes;
  for (int64_t g = 0; g < shape.groups; ++g, block += header.group_bytes) {
    std::memset(block + bytes, 0, header.group_bytes - bytes);
    PackBeginS8(rows, depth, block, bytes);
    PackRowsS8(0, rows, weight + g * rows * depth, scale + g * rows, block, bytes);
  }
}

PackedConvView ViewPackedConv(const void* packed, size_t packed_bytes) {
  const Header& header = CheckedHeader(packed, packed_bytes);
  char* base = static_cast<char*>(const_cast<void*>(packed));
  PackedConvView view{header.shape, nullptr, nullptr, nullptr, base + kHeaderBytes, header.group_bytes};
  if (IsDepthwise(header.shape)) {
    view.depthwise = FindDepthwise(header.kernel_id);
    if (view.depthwise == nullptr)
      Fail(std::string("packed for kernel ") + header.kernel_id + ", which this CPU cannot run; pack the weight again");
    const DepthwiseLayout layout = LayoutOf(*view.depthwise, header.shape);
    if (layout.total != packed_bytes) Fail("its size does not fit its shape");
    view.scale = reinterpret_cast<float*>(base + kHeaderBytes);
    view.col_sum = reinterpret_cast<int32_t*>(base + layout.col_sum_at);
    view.weights = base + layout.weights_at;
  } else if (header.group_bytes < sizeof(PackedHeaderS8) || header.group_bytes % kCacheLine != 0 ||
             (packed_bytes - kHeaderBytes) / header.group_bytes != static_cast<uint64_t>(header.shape.groups) ||
             (packed_bytes - kHeaderBytes) % header.group_bytes != 0) {
    Fail("its size does not fit its shape");
  }
  return view;
}

void UnpackConvS8(const void* packed, size_t packed_bytes, int8_t* weight, float* scale) {
  const PackedConvView view = ViewPackedConv(packed, packed_bytes);
  const ConvShape& s = view.shape;
  if (view.depthwise != nullptr) {
    std::copy_n(view.scale, s.in_channels, scale);
    view.depthwise->unpack(static_cast<int32_t>(s.in_channels), static_cast<int32_t>(s.kernel_h),
                           static_cast<int32_t>(s.kernel_w), view.weights, weight);
    return;
  }
  const int64_t rows = s.out_channels / s.groups;
  for (int64_t g = 0; g < s.groups; ++g) {
    const char* block = view.weights + static_cast<size_t>(g) * view.group_bytes;
    const PackedViewS8 group = view.Group(g);
    UnpackRowsS8(0, rows, block, group.layout.total, weight + g * rows * s.depth(), scale + g * rows);
  }
}

ConvShape ShapeOfPackedConvS8(const void* packed, size_t packed_bytes) {
  return CheckedHeader(packed, packed_bytes).shape;
}

std::string KernelOfPackedConvS8(const void* packed, size_t packed_bytes) {
  const PackedConvView view = ViewPackedConv(packed, packed_bytes);
  return view.depthwise != nullptr ? view.depthwise->id : view.Group(0).kernel->id;
}

}  // namespace tersor

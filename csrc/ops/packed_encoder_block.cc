#include "ops/packed_encoder_block.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "core/scratch.h"
#include "ops/packed_lowrank_s8.h"
#include "ops/packed_s8.h"
#include "ops/packed_spmm_s8.h"
#include "tersor/linear_s8.h"
#include "tersor/lowrank.h"
#include "tersor/spmm_s8.h"

namespace tersor {
namespace {

constexpr char kMagic[8] = {'T', 'S', 'R', 'E', 'N', 'C', '1', '\0'};
constexpr int64_t kMaxExtent = int64_t{1} << 24;
constexpr const char* kNames[kEncoderProducts] = {"qkv", "out", "ffn_in", "ffn_out"};

[[noreturn]] void Fail(const std::string& what) { throw Error("packed encoder block: " + what); }

void CheckConfig(const EncoderBlockConfig& c) {
  const auto size = [](int64_t value) { return value > 0 && value <= kMaxExtent; };
  if (!size(c.hidden) || !size(c.heads) || !size(c.head_dim) || !size(c.ffn) || c.head_dim > kMaxHeadDim ||
      c.heads * c.head_dim > kMaxExtent)
    Fail("hidden=" + std::to_string(c.hidden) + ", heads=" + std::to_string(c.heads) +
         ", head_dim=" + std::to_string(c.head_dim) + ", ffn=" + std::to_string(c.ffn) +
         "; sizes are in [1, 2^24], head_dim at most " + std::to_string(kMaxHeadDim));
  const int32_t activation = static_cast<int32_t>(c.activation);
  if (activation < 0 || activation >= kActivationCount) Fail("unknown activation code " + std::to_string(activation));
  for (const float eps : c.eps)
    if (!(eps >= 0.0f) || !std::isfinite(eps)) Fail("eps=" + std::to_string(eps) + "; it is finite and at least 0");
  if (!(c.scale > 0.0f) || !std::isfinite(c.scale))
    Fail("scale=" + std::to_string(c.scale) + "; it is finite and greater than 0");
}

// weight_bytes are at most the size of real memory, so that no sum of them overflows.
PackedLayoutEncoderBlock LayoutOf(const EncoderBlockConfig& c, const size_t* weight_bytes) {
  const int64_t width = c.heads * c.head_dim;
  PackedLayoutEncoderBlock layout{
      {3 * width, c.hidden, c.ffn, c.hidden}, {c.hidden, width, c.hidden, c.ffn}, {}, {}, {}, {}, 0};
  size_t at = sizeof(PackedHeaderEncoderBlock);
  const auto floats = [&at](int64_t count) {
    const size_t begin = at;
    at += Scratch::Padded<float>(static_cast<size_t>(count));
    return begin;
  };
  for (int i = 0; i < kEncoderProducts; ++i) layout.bias_at[i] = floats(layout.n[i]);
  for (int i = 0; i < 2; ++i) {
    layout.gamma_at[i] = floats(c.hidden);
    layout.beta_at[i] = floats(c.hidden);
  }
  for (int i = 0; i < kEncoderProducts; ++i) {
    layout.weight_at[i] = at;
    at += Scratch::Padded<char>(weight_bytes[i]);
  }
  layout.total = at;
  return layout;
}

// The kind, found by trying; `runnable` becomes false where this CPU cannot run the kernel.
struct Shape {
  EncoderWeightKind kind;
  int64_t n, k;
  std::string kernel;
  bool runnable;
};

Shape ShapeOf(EncoderWeightKind kind, const void* weight, size_t bytes) {
  if (kind == EncoderWeightKind::kDense) {
    const PackedInfoS8 info = InspectPackedS8(weight, bytes);
    return {kind, info.n, info.k, info.kernel, info.runnable};
  }
  if (kind == EncoderWeightKind::kSparse) {
    const PackedInfoSpmmS8 info = InspectPackedSpmmS8(weight, bytes);
    return {kind, info.n, info.k, info.kernel, info.runnable};
  }
  const PackedInfoLowRank info = InspectPackedLowRankS8(weight, bytes);
  return {kind, info.n, info.k, info.kernel, info.runnable};
}

EncoderWeightKind KindOf(int product, const void* weight, size_t bytes) {
  for (int32_t code = 0; code < kEncoderWeightKinds; ++code) {
    const EncoderWeightKind kind = static_cast<EncoderWeightKind>(code);
    try {
      ShapeOf(kind, weight, bytes);
      return kind;
    } catch (const Error&) {
    }
  }
  Fail(std::string("the weight of ") + kNames[product] + " is not a packed int8 weight: dense, sparse or low rank");
}

void CheckShape(int product, const Shape& shape, const PackedLayoutEncoderBlock& layout) {
  if (shape.n != layout.n[product] || shape.k != layout.k[product])
    Fail(std::string("the weight of ") + kNames[product] + " is [" + std::to_string(shape.n) + ", " +
         std::to_string(shape.k) + "], expected [" + std::to_string(layout.n[product]) + ", " +
         std::to_string(layout.k[product]) + "]");
}

// All that the op checks, too, so that it will not fail in a task.
void CheckWeight(int product, const PackedViewEncoderBlock& view, const PackedLayoutEncoderBlock& layout) {
  const void* weight = view.weight[product];
  const size_t bytes = view.weight_bytes[product];
  Shape shape{};
  const auto take = [&shape](const auto& checked) {
    shape.n = checked.n;
    shape.k = checked.k;
  };
  if (view.kind[product] == EncoderWeightKind::kDense)
    take(ViewPackedS8(weight, bytes));
  else if (view.kind[product] == EncoderWeightKind::kSparse)
    take(ViewPackedSpmmS8(weight, bytes));
  else
    take(ViewPackedLowRankS8(weight, bytes));
  CheckShape(product, shape, layout);
}

struct CheckedBlock {
  const char* base;
  const PackedHeaderEncoderBlock* header;
  EncoderBlockConfig config;
  PackedLayoutEncoderBlock layout;
};

CheckedBlock Checked(const void* packed, size_t packed_bytes) {
  if (packed == nullptr || packed_bytes < sizeof(PackedHeaderEncoderBlock))
    Fail(std::to_string(packed_bytes) + " bytes are too few for its header");
  if (reinterpret_cast<uintptr_t>(packed) % alignof(PackedHeaderEncoderBlock) != 0)
    Fail("its address is not a multiple of " + std::to_string(alignof(PackedHeaderEncoderBlock)));
  const PackedHeaderEncoderBlock& h = *static_cast<const PackedHeaderEncoderBlock*>(packed);
  if (std::memcmp(h.magic, kMagic, sizeof kMagic) != 0)
    Fail("these bytes are not one (or of another version of tersor); pack the block again");
  bool sizes = h.bytes == packed_bytes && h.norm_first <= 1 && h.activation < kActivationCount;
  for (int i = 0; i < kEncoderProducts; ++i)
    sizes = sizes && h.weight_bytes[i] <= packed_bytes && h.kind[i] < kEncoderWeightKinds;
  if (!sizes) Fail("its header is damaged or the block is cut off, got " + std::to_string(packed_bytes) + " bytes");
  CheckedBlock block{static_cast<const char*>(packed),
                     &h,
                     {h.hidden,
                      h.heads,
                      h.head_dim,
                      h.ffn,
                      h.norm_first != 0,
                      static_cast<Activation>(h.activation),
                      {h.eps[0], h.eps[1]},
                      h.scale},
                     {}};
  CheckConfig(block.config);
  size_t bytes[kEncoderProducts];
  std::copy_n(h.weight_bytes, kEncoderProducts, bytes);
  block.layout = LayoutOf(block.config, bytes);
  if (block.layout.total != packed_bytes)
    Fail(std::to_string(block.layout.total) + " bytes needed, got " + std::to_string(packed_bytes));
  return block;
}

}  // namespace

size_t PackedBytesEncoderBlock(const EncoderBlockConfig& config, const EncoderBlockParts& parts) {
  CheckConfig(config);
  const PackedLayoutEncoderBlock layout = LayoutOf(config, parts.weight_bytes);
  for (int i = 0; i < kEncoderProducts; ++i)
    CheckShape(i, ShapeOf(KindOf(i, parts.weight[i], parts.weight_bytes[i]), parts.weight[i], parts.weight_bytes[i]),
               layout);
  for (int i = 0; i < 2; ++i)
    if (parts.gamma[i] == nullptr || parts.beta[i] == nullptr) Fail("gamma and beta must not be null");
  return layout.total;
}

void PackEncoderBlock(const EncoderBlockConfig& config, const EncoderBlockParts& parts, void* packed,
                      size_t packed_bytes) {
  const size_t needed = PackedBytesEncoderBlock(config, parts);
  if (packed_bytes != needed || reinterpret_cast<uintptr_t>(packed) % alignof(PackedHeaderEncoderBlock) != 0)
    Fail(std::to_string(needed) + " aligned bytes needed, got " + std::to_string(packed_bytes));
  const PackedLayoutEncoderBlock layout = LayoutOf(config, parts.weight_bytes);
  char* base = static_cast<char*>(packed);
  std::memset(base, 0, packed_bytes);
  PackedHeaderEncoderBlock& h = *static_cast<PackedHeaderEncoderBlock*>(packed);
  std::memcpy(h.magic, kMagic, sizeof kMagic);
  h.bytes = needed;
  h.hidden = config.hidden;
  h.heads = config.heads;
  h.head_dim = config.head_dim;
  h.ffn = config.ffn;
  h.norm_first = config.norm_first;
  h.activation = static_cast<uint64_t>(config.activation);
  std::copy_n(config.eps, 2, h.eps);
  h.scale = config.scale;
  const auto put = [base](size_t at, const float* values, int64_t count) {
    if (values != nullptr) std::memcpy(base + at, values, static_cast<size_t>(count) * sizeof(float));
  };
  for (int i = 0; i < kEncoderProducts; ++i) {
    h.kind[i] = static_cast<uint64_t>(KindOf(i, parts.weight[i], parts.weight_bytes[i]));
    h.weight_bytes[i] = parts.weight_bytes[i];
    put(layout.bias_at[i], parts.bias[i], layout.n[i]);
    std::memcpy(base + layout.weight_at[i], parts.weight[i], parts.weight_bytes[i]);
  }
  for (int i = 0; i < 2; ++i) {
    put(layout.gamma_at[i], parts.gamma[i], config.hidden);
    put(layout.beta_at[i], parts.beta[i], config.hidden);
  }
}

EncoderBlockConfig ConfigOfEncoderBlock(const void* packed, size_t packed_bytes) {
  return Checked(packed, packed_bytes).config;
}

EncoderBlockInfo InspectEncoderBlock(const void* packed, size_t packed_bytes) {
  const CheckedBlock block = Checked(packed, packed_bytes);
  EncoderBlockInfo info{};
  info.config = block.config;
  info.runnable = true;
  for (int i = 0; i < kEncoderProducts; ++i) {
    const size_t at = block.layout.weight_at[i], bytes = block.header->weight_bytes[i];
    const Shape shape = ShapeOf(static_cast<EncoderWeightKind>(block.header->kind[i]), block.base + at, bytes);
    CheckShape(i, shape, block.layout);
    info.product[i] = {shape.kind, shape.n, shape.k, at, bytes, shape.kernel, block.layout.bias_at[i]};
    info.runnable = info.runnable && shape.runnable;
  }
  std::copy_n(block.layout.gamma_at, 2, info.gamma_offset);
  std::copy_n(block.layout.beta_at, 2, info.beta_offset);
  return info;
}

PackedViewEncoderBlock ViewPackedEncoderBlock(const void* packed, size_t packed_bytes) {
  const CheckedBlock block = Checked(packed, packed_bytes);
  PackedViewEncoderBlock view{};
  view.config = block.config;
  const auto floats = [&block](size_t at) { return reinterpret_cast<const float*>(block.base + at); };
  for (int i = 0; i < kEncoderProducts; ++i) {
    view.kind[i] = static_cast<EncoderWeightKind>(block.header->kind[i]);
    view.weight[i] = block.base + block.layout.weight_at[i];
    view.weight_bytes[i] = block.header->weight_bytes[i];
    view.bias[i] = floats(block.layout.bias_at[i]);
    CheckWeight(i, view, block.layout);
  }
  for (int i = 0; i < 2; ++i) {
    view.gamma[i] = floats(block.layout.gamma_at[i]);
    view.beta[i] = floats(block.layout.beta_at[i]);
  }
  return view;
}

}  // namespace tersor

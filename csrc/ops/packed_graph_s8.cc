#include "ops/packed_graph_s8.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/scratch.h"
#include "ops/finish_s8.h"
#include "ops/packed_conv_s8.h"

namespace tersor {
namespace {

constexpr char kMagic[8] = {'T', 'S', 'R', 'G', '8', 'v', '1', '\0'};
constexpr int64_t kMaxNodes = 1 << 16;

[[noreturn]] void Fail(const std::string& what) { throw Error("packed int8 graph: " + what); }

size_t Aligned(size_t bytes) { return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

size_t NodesAt() { return Aligned(sizeof(PackedGraphHeader)); }

size_t DataAt(int64_t nodes) { return NodesAt() + Aligned(static_cast<size_t>(nodes) * sizeof(PackedGraphNode)); }

// The laws that hold for a spec and for a block alike.
template <typename Node>
void CheckNode(int64_t i, int64_t nodes, const Node& node) {
  const auto fail = [i](const std::string& what) { Fail("node " + std::to_string(i) + ": " + what); };
  const int32_t kind = static_cast<int32_t>(node.kind), pooling = static_cast<int32_t>(node.pooling);
  if (kind < 0 || kind > static_cast<int32_t>(GraphNodeKind::kAdd)) fail("unknown kind " + std::to_string(kind));
  if (node.input < 0 || node.input > i || node.other < -1 || node.other > i)
    fail("reads values " + std::to_string(node.input) + " and " + std::to_string(node.other) +
         ", which do not come before it");
  if (kind == static_cast<int32_t>(GraphNodeKind::kPool) && (node.other != -1 || i + 1 == nodes))
    fail("a pooling has one input and is not the last node");
  CheckConvActivation("packed int8 graph", static_cast<ConvActivation>(node.activation));
  if (pooling < 0 || pooling > static_cast<int32_t>(Pooling::kAverageOfInside))
    fail("unknown pooling " + std::to_string(pooling));
  if (i + 1 < nodes) CheckQuantized("packed int8 graph", "node", node.as);
  if (kind == static_cast<int32_t>(GraphNodeKind::kConv)) CheckConvShape("packed int8 graph", node.shape);
}

void CheckInput(int64_t channels, const Quantized& input, int64_t nodes) {
  if (channels < 1 || channels > int64_t{1} << 24) Fail("channels=" + std::to_string(channels));
  if (nodes < 1 || nodes > kMaxNodes) Fail("nodes=" + std::to_string(nodes) + " is outside [1, 65536]");
  if (input.scale != 0.0f) CheckQuantized("packed int8 graph", "input", input);
}

void CheckSpec(const GraphSpec& spec) {
  CheckInput(spec.channels, spec.input, spec.nodes);
  for (int64_t i = 0; i < spec.nodes; ++i) {
    CheckNode(i, spec.nodes, spec.node[i]);
    if (spec.node[i].kind == GraphNodeKind::kConv && (spec.node[i].weight == nullptr || spec.node[i].scale == nullptr))
      Fail("node " + std::to_string(i) + " has no weight");
  }
}

size_t BiasBytes(const ConvShape& shape) { return Scratch::Padded<float>(static_cast<size_t>(shape.out_channels)); }

void CheckPacked(int64_t i, const PackedGraphView& view, size_t packed_bytes) {
  const PackedGraphNode& node = view.node[i];
  CheckNode(i, view.nodes(), node);
  if (node.kind != static_cast<int32_t>(GraphNodeKind::kConv)) return;
  const size_t bias_bytes = BiasBytes(node.shape);
  if (node.bias_at % kCacheLine != 0 || node.packed_at % kCacheLine != 0 || node.bias_at > packed_bytes ||
      packed_bytes - node.bias_at < bias_bytes || node.packed_at > packed_bytes ||
      packed_bytes - node.packed_at < node.packed_bytes)
    Fail("node " + std::to_string(i) + " lies outside of the block");
  const ConvShape shape = ShapeOfPackedConvS8(view.base + node.packed_at, node.packed_bytes);
  if (std::memcmp(&shape, &node.shape, sizeof shape) != 0)
    Fail("node " + std::to_string(i) + " holds a filter of another shape");
}

const PackedGraphNode& ConvAt(const PackedGraphView& view, int64_t node) {
  if (node < 0 || node >= view.nodes() || view.node[node].kind != static_cast<int32_t>(GraphNodeKind::kConv))
    Fail("node " + std::to_string(node) + " is not a convolution");
  return view.node[node];
}

}  // namespace

PackedGraphView ViewPackedGraph(const void* packed, size_t packed_bytes) {
  if (packed == nullptr || packed_bytes < NodesAt()) Fail(std::to_string(packed_bytes) + " bytes are too few");
  if (reinterpret_cast<uintptr_t>(packed) % alignof(PackedGraphHeader) != 0) Fail("its address is not a multiple of 8");
  const char* base = static_cast<const char*>(packed);
  const PackedGraphHeader* header = static_cast<const PackedGraphHeader*>(packed);
  if (std::memcmp(header->magic, kMagic, sizeof kMagic) != 0)
    Fail("these bytes are not one (or of another version of tersor); pack it again");
  if (header->bytes != packed_bytes)
    Fail("header says " + std::to_string(header->bytes) + " bytes, got " + std::to_string(packed_bytes));
  CheckInput(header->channels, header->input, header->nodes);
  if (DataAt(header->nodes) > packed_bytes) Fail("its nodes lie outside of the block");
  const PackedGraphView view{base, header, reinterpret_cast<const PackedGraphNode*>(base + NodesAt())};
  for (int64_t i = 0; i < header->nodes; ++i) CheckPacked(i, view, packed_bytes);
  return view;
}

size_t PackedBytesGraphS8(const GraphSpec& spec) {
  CheckSpec(spec);
  size_t bytes = DataAt(spec.nodes);
  for (int64_t i = 0; i < spec.nodes; ++i)
    if (spec.node[i].kind == GraphNodeKind::kConv)
      bytes += BiasBytes(spec.node[i].shape) + Aligned(PackedBytesConvS8(spec.node[i].shape));
  return bytes;
}

void PackGraphS8(const GraphSpec& spec, void* packed, size_t packed_bytes) {
  const size_t needed = PackedBytesGraphS8(spec);
  if (packed == nullptr || packed_bytes != needed || reinterpret_cast<uintptr_t>(packed) % 8 != 0)
    Fail(std::to_string(needed) + " aligned bytes needed, got " + std::to_string(packed_bytes));
  char* base = static_cast<char*>(packed);
  std::memset(base, 0, DataAt(spec.nodes));
  PackedGraphHeader header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.bytes = packed_bytes;
  header.channels = spec.channels;
  header.nodes = spec.nodes;
  header.input = spec.input;
  std::memcpy(base, &header, sizeof header);
  size_t at = DataAt(spec.nodes);
  for (int64_t i = 0; i < spec.nodes; ++i) {
    const GraphNodeSpec& from = spec.node[i];
    PackedGraphNode node{static_cast<int32_t>(from.kind),
                         from.input,
                         from.other,
                         static_cast<int32_t>(from.activation),
                         static_cast<int32_t>(from.pooling),
                         from.whole ? 1 : 0,
                         from.as,
                         from.shape,
                         0,
                         0,
                         0};
    if (from.kind == GraphNodeKind::kConv) {
      const size_t channels = static_cast<size_t>(from.shape.out_channels), bytes = PackedBytesConvS8(from.shape);
      std::memset(base + at, 0, BiasBytes(from.shape));
      if (from.bias != nullptr) std::memcpy(base + at, from.bias, channels * sizeof(float));
      node.bias_at = at;
      node.packed_at = at + BiasBytes(from.shape);
      node.packed_bytes = bytes;
      std::memset(base + node.packed_at, 0, Aligned(bytes));
      PackConvS8(from.shape, from.weight, from.scale, base + node.packed_at, bytes);
      at = node.packed_at + Aligned(bytes);
    }
    std::memcpy(base + NodesAt() + static_cast<size_t>(i) * sizeof node, &node, sizeof node);
  }
}

ConvShape ShapeOfGraphConvS8(const void* packed, size_t packed_bytes, int64_t node) {
  return ConvAt(ViewPackedGraph(packed, packed_bytes), node).shape;
}

int64_t ChannelsOfGraphS8(const void* packed, size_t packed_bytes) {
  return ViewPackedGraph(packed, packed_bytes).header->channels;
}

void UnpackGraphConvS8(const void* packed, size_t packed_bytes, int64_t node, int8_t* weight, float* scale,
                       float* bias) {
  const PackedGraphView view = ViewPackedGraph(packed, packed_bytes);
  const PackedGraphNode& from = ConvAt(view, node);
  UnpackConvS8(view.base + from.packed_at, from.packed_bytes, weight, scale);
  if (bias != nullptr) std::copy_n(view.Bias(node), from.shape.out_channels, bias);
}

std::string KernelOfGraphS8(const void* packed, size_t packed_bytes) {
  const PackedGraphView view = ViewPackedGraph(packed, packed_bytes);
  const PackedGraphNode* most = nullptr;
  for (int64_t i = 0; i < view.nodes(); ++i)
    if (view.node[i].packed_bytes > 0 && (most == nullptr || view.node[i].packed_bytes > most->packed_bytes))
      most = &view.node[i];
  return most == nullptr ? "" : KernelOfPackedConvS8(view.base + most->packed_at, most->packed_bytes);
}

}  // namespace tersor

// Graphs of int8 convolutions on NumPy arrays.
#include "tersor/graph_s8.h"

#include <pybind11/stl.h>

#include <tuple>

#include "arrays.h"

namespace tersor::bindings {
namespace {

using Floats = py::array_t<float, py::array::c_style>;

// What keeps the arrays of a GraphSpec alive.
struct Graph {
  std::vector<GraphNodeSpec> nodes;
  std::vector<py::array> kept;
  GraphSpec spec{};
};

Quantized QuantizedOf(const py::handle& object) {
  const auto [scale, zero_point] = object.cast<std::tuple<float, int32_t>>();
  return {scale, zero_point};
}

ConvShape ConvShapeOf(const py::handle& object) {
  const std::vector<int64_t> v = [&] {
    std::vector<int64_t> values;
    for (const py::handle item : object) values.push_back(item.cast<int64_t>());
    return values;
  }();
  if (v.size() != 13) throw Error("shape: expected 13 integers, got " + std::to_string(v.size()));
  return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12]};
}

py::tuple TupleOf(const ConvShape& s) {
  return py::make_tuple(s.in_channels, s.out_channels, s.groups, s.kernel_h, s.kernel_w, s.stride_h, s.stride_w,
                        s.dilation_h, s.dilation_w, s.pad_top, s.pad_left, s.pad_bottom, s.pad_right);
}

void TakeWeight(const py::dict& from, GraphNodeSpec& node, Graph& graph) {
  const ConvShape& s = node.shape;
  if (s.groups < 1) throw Error("shape: groups=" + std::to_string(s.groups));
  const auto weight = ArrayOf<int8_t>(from["weight"], "weight");
  CheckShape(weight, "weight", {s.out_channels, s.kernel_h, s.kernel_w, s.in_channels / s.groups});
  const auto scale = ArrayOf<float>(from["scale"], "scale");
  CheckShape(scale, "scale", {s.out_channels});
  node.weight = weight.data();
  node.scale = scale.data();
  graph.kept.push_back(weight);
  graph.kept.push_back(scale);
  if (from["bias"].is_none()) return;
  const auto bias = ArrayOf<float>(from["bias"], "bias");
  CheckShape(bias, "bias", {s.out_channels});
  node.bias = bias.data();
  graph.kept.push_back(bias);
}

GraphNodeSpec NodeOf(const py::dict& from, Graph& graph) {
  GraphNodeSpec node{};
  node.kind = static_cast<GraphNodeKind>(from["kind"].cast<int32_t>());
  node.input = from["input"].cast<int32_t>();
  node.other = from["other"].cast<int32_t>();
  node.activation = static_cast<ConvActivation>(from["activation"].cast<int32_t>());
  node.pooling = static_cast<Pooling>(from["pooling"].cast<int32_t>());
  node.whole = from["whole"].cast<bool>();
  node.as = QuantizedOf(from["as"]);
  node.shape = ConvShapeOf(from["shape"]);
  if (node.kind == GraphNodeKind::kConv) TakeWeight(from, node, graph);
  return node;
}

py::array_t<uint8_t> Pack(int64_t channels, const py::object& input, const py::list& nodes) {
  Graph graph;
  for (const py::handle node : nodes) graph.nodes.push_back(NodeOf(node.cast<py::dict>(), graph));
  graph.spec = {channels, QuantizedOf(input), static_cast<int64_t>(graph.nodes.size()), graph.nodes.data()};
  py::array_t<uint8_t> packed = CacheLineBytes(PackedBytesGraphS8(graph.spec));
  void* block = packed.mutable_data();
  const size_t bytes = static_cast<size_t>(packed.size());
  const py::gil_scoped_release release;
  PackGraphS8(graph.spec, block, bytes);
  return packed;
}

struct Packed {
  explicit Packed(const py::object& object) : array(ArrayOf<uint8_t>(object, "packed")) {
    if (array.ndim() != 1) throw Error("packed: expected 1 dimension, got shape " + Text(ShapeOf(array)));
  }
  const void* data() const { return array.data(); }
  size_t size() const { return static_cast<size_t>(array.size()); }

  py::array_t<uint8_t, py::array::c_style> array;
};

// Weight, scale and bias of the convolution at `node`.
py::tuple Unpack(const py::object& packed_in, int64_t node, const py::object& shape) {
  const Packed packed(packed_in);
  const ConvShape given = ConvShapeOf(shape), s = ShapeOfGraphConvS8(packed.data(), packed.size(), node);
  if (!TupleOf(given).equal(TupleOf(s))) throw Error("packed int8 graph: the convolution has another shape");
  py::array_t<int8_t> weight({s.out_channels, s.kernel_h, s.kernel_w, s.in_channels / s.groups});
  Floats scale(s.out_channels), bias(s.out_channels);
  int8_t* weight_data = weight.mutable_data();
  float *scale_data = scale.mutable_data(), *bias_data = bias.mutable_data();
  {
    const py::gil_scoped_release release;
    UnpackGraphConvS8(packed.data(), packed.size(), node, weight_data, scale_data, bias_data);
  }
  return py::make_tuple(weight, scale, bias);
}

py::tuple Output(const py::object& packed_in, int64_t height, int64_t width) {
  const Packed packed(packed_in);
  const GraphExtents out = OutputOfGraphS8(packed.data(), packed.size(), height, width);
  return py::make_tuple(out.channels, out.height, out.width);
}

size_t ArenaBytes(const py::object& packed_in, int64_t height, int64_t width) {
  const Packed packed(packed_in);
  return ArenaBytesGraphS8(packed.data(), packed.size(), height, width);
}

std::string Kernel(const py::object& packed_in) {
  const Packed packed(packed_in);
  return KernelOfGraphS8(packed.data(), packed.size());
}

py::array_t<float> Run(const py::object& x_in, const py::object& packed_in) {
  const auto x = ArrayOf<float>(x_in, "x");
  const Packed packed(packed_in);
  if (x.ndim() != 4) throw Error("x: expected shape [batch, height, width, channels], got " + Text(ShapeOf(x)));
  const int64_t channels = ChannelsOfGraphS8(packed.data(), packed.size());
  CheckShape(x, "x", {x.shape(0), x.shape(1), x.shape(2), channels});
  const GraphExtents out = OutputOfGraphS8(packed.data(), packed.size(), x.shape(1), x.shape(2));
  py::array_t<float> y({static_cast<int64_t>(x.shape(0)), out.height, out.width, out.channels});
  const GraphS8Args args{x.shape(0),    x.shape(1),    x.shape(2), x.data(),        true,
                         packed.data(), packed.size(), nullptr,    y.mutable_data()};
  const py::gil_scoped_release release;
  GraphS8(args, PoolExecutor());
  return y;
}

}  // namespace

void BindGraphS8(py::module_& m) {
  m.def("pack_graph_s8", Pack, py::arg("channels"), py::arg("input"), py::arg("nodes"));
  m.def("unpack_graph_conv_s8", Unpack, py::arg("packed"), py::arg("node"), py::arg("shape"));
  m.def("graph_output_s8", Output, py::arg("packed"), py::arg("height"), py::arg("width"));
  m.def("graph_arena_bytes_s8", ArenaBytes, py::arg("packed"), py::arg("height"), py::arg("width"));
  m.def("graph_kernel_s8", Kernel, py::arg("packed"));
  m.def("graph_s8", Run, py::arg("x"), py::arg("packed"));
}

}  // namespace tersor::bindings

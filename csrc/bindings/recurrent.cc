// Packed weights of recurrent layers on NumPy arrays.
#include "arrays.h"
#include "tersor/recurrent_s8.h"

namespace tersor::bindings {
namespace {

Cell CellOf(const std::string& name) {
  if (name == "gru") return Cell::kGru;
  if (name == "lstm") return Cell::kLstm;
  throw Error("cell: '" + name + "' is unknown; there are gru, lstm");
}

py::array_t<uint8_t> Pack(const std::string& cell, const py::object& input_in, const py::object& input_scale_in,
                          const py::object& hidden_in, const py::object& hidden_scale_in,
                          const py::object& input_bias_in, const py::object& hidden_bias_in) {
  const auto input = Matrix<int8_t>(input_in, "input"), hidden = Matrix<int8_t>(hidden_in, "hidden");
  const RecurrentSpec spec{CellOf(cell), input.shape(1), hidden.shape(1), !input_bias_in.is_none()};
  const int64_t width = GatesOf(spec.cell) * spec.hidden;
  CheckShape(input, "input", {width, spec.input});
  CheckShape(hidden, "hidden", {width, spec.hidden});
  if (input_bias_in.is_none() != hidden_bias_in.is_none()) throw Error("one bias without the other");
  const auto input_scale = ArrayOf<float>(input_scale_in, "input_scale");
  const auto hidden_scale = ArrayOf<float>(hidden_scale_in, "hidden_scale");
  CheckShape(input_scale, "input_scale", {width});
  CheckShape(hidden_scale, "hidden_scale", {width});
  const OptionalFloats input_bias(input_bias_in, "input_bias", {width});
  const OptionalFloats hidden_bias(hidden_bias_in, "hidden_bias", {width});
  py::array_t<uint8_t> packed = CacheLineBytes(PackedBytesRecurrent(spec));
  PackRecurrent(
      spec, {input.data(), hidden.data(), input_scale.data(), hidden_scale.data(), input_bias.data, hidden_bias.data},
      packed.mutable_data(), static_cast<size_t>(packed.size()));
  return packed;
}

py::dict Inspect(const py::object& packed_in) {
  const auto packed = ArrayOf<uint8_t>(packed_in, "packed");
  const PackedInfoRecurrent info = InspectPackedRecurrent(packed.data(), static_cast<size_t>(packed.size()));
  return py::dict(py::arg("cell") = info.spec.cell == Cell::kGru ? "gru" : "lstm", py::arg("input") = info.spec.input,
                  py::arg("hidden") = info.spec.hidden, py::arg("bias") = info.spec.bias, py::arg("bytes") = info.bytes,
                  py::arg("kernel") = info.kernel);
}

py::tuple Unpack(const py::object& packed_in) {
  const auto packed = ArrayOf<uint8_t>(packed_in, "packed");
  const size_t bytes = static_cast<size_t>(packed.size());
  const RecurrentSpec spec = InspectPackedRecurrent(packed.data(), bytes).spec;
  const int64_t width = GatesOf(spec.cell) * spec.hidden, biases = spec.bias ? width : 0;
  py::array_t<int8_t> input({width, spec.input}), hidden({width, spec.hidden});
  py::array_t<float> input_scale(width), hidden_scale(width), input_bias(biases), hidden_bias(biases);
  UnpackRecurrent(packed.data(), bytes,
                  {input.mutable_data(), hidden.mutable_data(), input_scale.mutable_data(), hidden_scale.mutable_data(),
                   input_bias.mutable_data(), hidden_bias.mutable_data()});
  return py::make_tuple(input, input_scale, hidden, hidden_scale, input_bias, hidden_bias);
}

}  // namespace

void BindRecurrent(py::module_& m) {
  m.def("pack_recurrent", Pack, py::arg("cell"), py::arg("input"), py::arg("input_scale"), py::arg("hidden"),
        py::arg("hidden_scale"), py::arg("input_bias") = py::none(), py::arg("hidden_bias") = py::none());
  m.def("inspect_recurrent", Inspect, py::arg("packed"));
  m.def("unpack_recurrent", Unpack, py::arg("packed"));
}

}  // namespace tersor::bindings

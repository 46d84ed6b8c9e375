// Code book weights on NumPy arrays.
#include "linear_call.h"
#include "tersor/linear_lut4.h"

namespace tersor::bindings {
namespace {

using PackedLut4 = PackedArray<InspectPackedLut4>;

// The spec that the shapes of the arrays stand for.
Lut4Spec SpecOf(const py::array& codes, const py::array& table, const py::array& scale, int64_t group) {
  Lut4Spec spec{codes.shape(0), codes.shape(1), group, 0, 1, 1};
  const int64_t dim = table.ndim();
  if (dim < 1 || dim > 3) throw Error("table: expected 1 to 3 dimensions, got shape " + Text(ShapeOf(table)));
  const int64_t entries = table.shape(dim - 1);
  while (spec.bits < 9 && int64_t{1} << spec.bits < entries) ++spec.bits;
  if (entries != int64_t{1} << spec.bits || spec.bits < 2 || spec.bits > 8)
    throw Error("table: expected 4, 8, 16, 32, 64, 128 or 256 entries, got shape " + Text(ShapeOf(table)));
  if (dim > 1) spec.table_rows = spec.n;
  if (group < 0 || (group > 0 && group % 32 != 0))
    throw Error("group: expected 0 or a multiple of 32, got " + std::to_string(group));
  if (dim > 2) spec.table_groups = spec.groups();
  CheckShape(scale, "scale", {spec.n, spec.groups()});
  if (dim == 2) CheckShape(table, "table", {spec.n, entries});
  if (dim == 3) CheckShape(table, "table", {spec.n, spec.groups(), entries});
  return spec;
}

// Into `out`, where it is an array of as many bytes.
py::object Pack(const py::object& codes_in, const py::object& table_in, const py::object& scale_in, int64_t group,
                const py::object& input_scale_in, const py::object& out) {
  const auto codes = Matrix<uint8_t>(codes_in, "codes");
  const auto table = ArrayOf<int8_t>(table_in, "table");
  const auto scale = Matrix<float>(scale_in, "scale");
  const Lut4Spec spec = SpecOf(codes, table, scale, group);
  const OptionalFloats input_scale(input_scale_in, "input_scale", {spec.k});
  py::array_t<uint8_t> packed = out.is_none() ? CacheLineBytes(PackedBytesLut4(spec)) : out;
  void* block = packed.mutable_data();
  const size_t bytes = static_cast<size_t>(packed.size());
  const py::gil_scoped_release release;
  PackLut4(spec, {codes.data(), table.data(), scale.data(), input_scale.data}, block, bytes);
  return std::move(packed);
}

size_t PackedBytes(const py::object& codes_in, const py::object& table_in, const py::object& scale_in, int64_t group) {
  return PackedBytesLut4(SpecOf(Matrix<uint8_t>(codes_in, "codes"), ArrayOf<int8_t>(table_in, "table"),
                                Matrix<float>(scale_in, "scale"), group));
}

py::tuple Unpack(const py::object& packed_in) {
  const PackedLut4 packed(packed_in);
  const Lut4Spec& spec = packed.info.spec;
  Shape table_shape = {int64_t{1} << spec.bits};
  if (spec.table_groups > 1) table_shape.insert(table_shape.begin(), spec.table_groups);
  if (spec.table_rows > 1 || spec.table_groups > 1) table_shape.insert(table_shape.begin(), spec.table_rows);
  py::array_t<uint8_t> codes({spec.n, spec.k});
  py::array_t<int8_t> table(table_shape);
  py::array_t<float> scale({spec.n, spec.groups()});
  uint8_t* codes_data = codes.mutable_data();
  int8_t* table_data = table.mutable_data();
  float* scale_data = scale.mutable_data();
  {
    const py::gil_scoped_release release;
    UnpackLut4(packed.data(), packed.size(), codes_data, table_data, scale_data, nullptr);
  }
  return py::make_tuple(codes, table, scale);
}

py::object InputScale(const py::object& packed_in) {
  const PackedLut4 packed(packed_in);
  if (!packed.info.smoothed) return py::none();
  py::array_t<float> values(packed.info.k);
  UnpackLut4(packed.data(), packed.size(), nullptr, nullptr, nullptr, values.mutable_data());
  return std::move(values);
}

py::dict Inspect(const py::object& packed_in) {
  const PackedInfoLut4 info = PackedLut4(packed_in).info;
  return py::dict(py::arg("n") = info.n, py::arg("k") = info.k, py::arg("group") = info.spec.group,
                  py::arg("bits") = info.spec.bits, py::arg("kernel") = info.kernel);
}

py::array_t<int32_t> Gemm(const py::object& a_in, const py::object& packed_in) {
  const auto a = Matrix<uint8_t>(a_in, "a");
  const PackedLut4 packed(packed_in);
  const int64_t m = a.shape(0), n = packed.info.n, k = packed.info.k;
  CheckShape(a, "a", {m, k});
  py::array_t<int32_t> c({m, n});
  int32_t* c_data = c.mutable_data();
  const py::gil_scoped_release release;
  GemmLut4(m, a.data(), k, packed.data(), packed.size(), c_data, n, PoolExecutor());
  return c;
}

}  // namespace

void BindLut4(py::module_& m) {
  m.def("pack_lut4", Pack, py::arg("codes"), py::arg("table"), py::arg("scale"), py::arg("group") = 0,
        py::arg("input_scale") = py::none(), py::arg("out") = py::none());
  m.def("packed_bytes_lut4", PackedBytes, py::arg("codes"), py::arg("table"), py::arg("scale"), py::arg("group") = 0);
  m.def("unpack_lut4", Unpack, py::arg("packed"));
  m.def("input_scale_lut4", InputScale, py::arg("packed"));
  m.def("inspect_lut4", Inspect, py::arg("packed"));
  m.def("gemm_lut4", Gemm, py::arg("a"), py::arg("packed"));
  m.def("linear_lut4", RunLinearS8<PackedLut4, LinearLut4>, py::arg("x"), py::arg("packed"),
        py::arg("bias") = py::none(), py::arg("residual") = py::none(), py::arg("activation") = "none",
        py::arg("x_scale") = 0.0f, py::arg("x_zero_point") = 0);
}

}  // namespace tersor::bindings

// Sparse int8 weights on NumPy arrays.
#include "tersor/spmm_s8.h"

#include "linear_call.h"

namespace tersor::bindings {
namespace {

using PackedSparse = PackedArray<InspectPackedSpmmS8>;

py::array_t<uint8_t> Pack(const py::object& w_in, const py::object& scale_in, const py::object& input_scale_in) {
  const auto w = Matrix<int8_t>(w_in, "w");
  const auto scale = ArrayOf<float>(scale_in, "scale");
  const int64_t n = w.shape(0), k = w.shape(1);
  CheckShape(scale, "scale", {n});
  const OptionalFloats input_scale(input_scale_in, "input_scale", {k});
  py::array_t<uint8_t> packed = CacheLineBytes(PackedBytesSpmmS8(n, k, w.data()));
  void* block = packed.mutable_data();
  const size_t bytes = static_cast<size_t>(packed.size());
  const py::gil_scoped_release release;
  PackSpmmS8(n, k, w.data(), scale.data(), input_scale.data, block, bytes);
  return packed;
}

py::tuple Unpack(const py::object& packed_in) {
  const PackedSparse packed(packed_in);
  py::array_t<int8_t> w({packed.info.n, packed.info.k});
  py::array_t<float> scale(packed.info.n);
  int8_t* w_data = w.mutable_data();
  float* scale_data = scale.mutable_data();
  {
    const py::gil_scoped_release release;
    UnpackSpmmS8(packed.data(), packed.size(), w_data, scale_data);
  }
  return py::make_tuple(w, scale);
}

py::object InputScale(const py::object& packed_in) {
  const PackedSparse packed(packed_in);
  const float* values = InputScaleSpmmS8(packed.data(), packed.size());
  return values == nullptr ? py::object(py::none()) : py::array_t<float>(packed.info.k, values);
}

py::dict Inspect(const py::object& packed_in) {
  const PackedInfoSpmmS8 info = PackedSparse(packed_in).info;
  return py::dict(py::arg("n") = info.n, py::arg("k") = info.k, py::arg("quads") = info.quads,
                  py::arg("form") = info.form, py::arg("kernel") = info.kernel, py::arg("runnable") = info.runnable);
}

}  // namespace

void BindSpmmS8(py::module_& m) {
  m.def("pack_sparse_s8", Pack, py::arg("w"), py::arg("scale"), py::arg("input_scale") = py::none());
  m.def("unpack_sparse_s8", Unpack, py::arg("packed"));
  m.def("input_scale_sparse_s8", InputScale, py::arg("packed"));
  m.def("inspect_sparse_s8", Inspect, py::arg("packed"));
  m.def("spmm_s8", RunLinearS8<PackedSparse, SpmmS8>, py::arg("x"), py::arg("packed"), py::arg("bias") = py::none(),
        py::arg("residual") = py::none(), py::arg("activation") = "none", py::arg("x_scale") = 0.0f,
        py::arg("x_zero_point") = 0);
}

}  // namespace tersor::bindings

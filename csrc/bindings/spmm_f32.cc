// Sparse float weights on NumPy arrays.
#include "tersor/spmm_f32.h"

#include "linear_call.h"

namespace tersor::bindings {
namespace {

using PackedSparse = PackedArray<InspectPackedSpmmF32>;

py::array_t<uint8_t> Pack(const py::object& w_in) {
  const auto w = Matrix<float>(w_in, "w");
  const int64_t n = w.shape(0), k = w.shape(1);
  py::array_t<uint8_t> packed = CacheLineBytes(PackedBytesSpmmF32(n, k, w.data()));
  void* block = packed.mutable_data();
  const size_t bytes = static_cast<size_t>(packed.size());
  const py::gil_scoped_release release;
  PackSpmmF32(n, k, w.data(), block, bytes);
  return packed;
}

py::array_t<float> Unpack(const py::object& packed_in) {
  const PackedSparse packed(packed_in);
  py::array_t<float> w({packed.info.n, packed.info.k});
  float* w_data = w.mutable_data();
  {
    const py::gil_scoped_release release;
    UnpackSpmmF32(packed.data(), packed.size(), w_data);
  }
  return w;
}

py::dict Inspect(const py::object& packed_in) {
  const PackedInfoSpmmF32 info = PackedSparse(packed_in).info;
  return py::dict(py::arg("n") = info.n, py::arg("k") = info.k, py::arg("nnz") = info.nnz,
                  py::arg("kernel") = info.kernel, py::arg("runnable") = info.runnable);
}

py::array_t<float> Multiply(const py::object& x, const py::object& packed, const py::object& bias,
                            const py::object& residual, const std::string& activation) {
  return LinearCall<PackedSparse, SpmmF32Args>(x, packed, bias, residual, activation).Run(SpmmF32);
}

}  // namespace

void BindSpmmF32(py::module_& m) {
  m.def("pack_sparse_f32", Pack, py::arg("w"));
  m.def("unpack_sparse_f32", Unpack, py::arg("packed"));
  m.def("inspect_sparse_f32", Inspect, py::arg("packed"));
  m.def("spmm_f32", Multiply, py::arg("x"), py::arg("packed"), py::arg("bias") = py::none(),
        py::arg("residual") = py::none(), py::arg("activation") = "none");
}

}  // namespace tersor::bindings

// Sparse float weights on NumPy arrays.
#include "tersor/spmm_f32.h"

#include "arrays.h"

namespace tersor::bindings {
namespace {

struct PackedSparse {
  explicit PackedSparse(const py::object& object) : array(ArrayOf<uint8_t>(object, "packed")) {
    if (array.ndim() != 1) throw Error("packed: expected 1 dimension, got shape " + Text(ShapeOf(array)));
    info = InspectPackedSpmmF32(data(), size());
  }
  const void* data() const { return array.data(); }
  size_t size() const { return static_cast<size_t>(array.size()); }

  py::array_t<uint8_t, py::array::c_style> array;
  PackedInfoSpmmF32 info;
};

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

py::array_t<float> Multiply(const py::object& x_in, const py::object& packed_in, const py::object& bias_in,
                            const py::object& residual_in, const std::string& activation) {
  const auto x = Matrix<float>(x_in, "x");
  const PackedSparse packed(packed_in);
  const int64_t m = x.shape(0), n = packed.info.n, k = packed.info.k;
  CheckShape(x, "x", {m, k});
  const OptionalFloats bias(bias_in, "bias", {n}), residual(residual_in, "residual", {m, n});
  py::array_t<float> y({m, n});
  SpmmF32Args args{};
  args.m = m;
  args.x = x.data();
  args.ldx = k;
  args.dtype = DType::kF32;
  args.packed = packed.data();
  args.packed_bytes = packed.size();
  args.bias = bias.data;
  args.residual = residual.data;
  args.ldr = n;
  args.activation = ActivationOf(activation);
  args.y = y.mutable_data();
  args.ldy = n;
  const py::gil_scoped_release release;
  SpmmF32(args, PoolExecutor());
  return y;
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

// Low-rank weights on NumPy arrays.
#include "tersor/lowrank.h"

#include <optional>

#include "linear_call.h"

namespace tersor::bindings {
namespace {

using PackedF32 = PackedArray<InspectPackedLowRankF32>;
using PackedS8 = PackedArray<InspectPackedLowRankS8>;

template <typename Packed>
py::dict Inspect(const py::object& packed_in) {
  const PackedInfoLowRank info = Packed(packed_in).info;
  return py::dict(py::arg("n") = info.n, py::arg("k") = info.k, py::arg("rank") = info.rank,
                  py::arg("dense") = info.dense, py::arg("kernel") = info.kernel, py::arg("runnable") = info.runnable);
}

py::array_t<uint8_t> PackF32(const py::object& down_in, const py::object& up_in) {
  const auto down = Matrix<float>(down_in, "down"), up = Matrix<float>(up_in, "up");
  const int64_t n = up.shape(0), rank = down.shape(0), k = down.shape(1);
  CheckShape(up, "up", {n, rank});
  py::array_t<uint8_t> packed = CacheLineBytes(PackedBytesLowRankF32(n, k, rank));
  void* block = packed.mutable_data();
  const size_t bytes = static_cast<size_t>(packed.size());
  const py::gil_scoped_release release;
  PackLowRankF32(n, k, rank, down.data(), up.data(), block, bytes);
  return packed;
}

py::tuple UnpackF32(const py::object& packed_in) {
  const PackedF32 packed(packed_in);
  py::array_t<float> down({packed.info.rank, packed.info.k}), up({packed.info.n, packed.info.rank});
  float *down_data = down.mutable_data(), *up_data = up.mutable_data();
  {
    const py::gil_scoped_release release;
    UnpackLowRankF32(packed.data(), packed.size(), down_data, up_data);
  }
  return py::make_tuple(down, up);
}

// An int8 matrix and the scales of its rows.
struct Integers {
  Integers(const py::object& q_in, const py::object& scale_in, const std::string& name)
      : q(Matrix<int8_t>(q_in, name.c_str())), scale(ArrayOf<float>(scale_in, (name + "_scale").c_str())) {
    CheckShape(scale, (name + "_scale").c_str(), {q.shape(0)});
  }
  py::array_t<int8_t, py::array::c_style> q;
  py::array_t<float, py::array::c_style> scale;
};

py::array_t<uint8_t> PackS8(const py::object& down_in, const py::object& down_scale, const py::object& up_in,
                            const py::object& up_scale, const py::object& input_scale_in, const py::object& dense_in,
                            const py::object& dense_scale) {
  const Integers down(down_in, down_scale, "down"), up(up_in, up_scale, "up");
  LowRankWeightS8 w{};
  w.n = up.q.shape(0);
  w.k = down.q.shape(1);
  w.rank = down.q.shape(0);
  CheckShape(up.q, "up", {w.n, w.rank});
  const OptionalFloats input_scale(input_scale_in, "input_scale", {w.k});
  w.down = down.q.data();
  w.down_scale = down.scale.data();
  w.up = up.q.data();
  w.up_scale = up.scale.data();
  w.input_scale = input_scale.data;
  std::optional<Integers> dense;
  if (!dense_in.is_none()) {
    dense.emplace(dense_in, dense_scale, "dense");
    CheckShape(dense->q, "dense", {w.n, w.k});
    w.dense = dense->q.data();
    w.dense_scale = dense->scale.data();
  }
  py::array_t<uint8_t> packed = CacheLineBytes(PackedBytesLowRankS8(w.n, w.k, w.rank, dense.has_value()));
  void* block = packed.mutable_data();
  const size_t bytes = static_cast<size_t>(packed.size());
  const py::gil_scoped_release release;
  PackLowRankS8(w, block, bytes);
  return packed;
}

py::tuple UnpackS8(const py::object& packed_in) {
  const PackedS8 packed(packed_in);
  const int64_t n = packed.info.n, k = packed.info.k, rank = packed.info.rank, dense_rows = packed.info.dense ? n : 0;
  py::array_t<int8_t> down({rank, k}), up({n, rank}), dense({dense_rows, k});
  py::array_t<float> down_scale(rank), up_scale(n), dense_scale(dense_rows);
  int8_t *down_q = down.mutable_data(), *up_q = up.mutable_data(), *dense_q = dense.mutable_data();
  float *down_s = down_scale.mutable_data(), *up_s = up_scale.mutable_data(), *dense_s = dense_scale.mutable_data();
  {
    const py::gil_scoped_release release;
    UnpackLowRankS8(packed.data(), packed.size(), down_q, down_s, up_q, up_s, dense_q, dense_s);
  }
  if (!packed.info.dense) return py::make_tuple(down, down_scale, up, up_scale, py::none(), py::none());
  return py::make_tuple(down, down_scale, up, up_scale, dense, dense_scale);
}

py::object InputScale(const py::object& packed_in) {
  const PackedS8 packed(packed_in);
  const float* values = InputScaleLowRankS8(packed.data(), packed.size());
  return values == nullptr ? py::object(py::none()) : py::array_t<float>(packed.info.k, values);
}

py::array_t<float> MultiplyF32(const py::object& x, const py::object& packed, const py::object& bias,
                               const py::object& residual, const std::string& activation) {
  return LinearCall<PackedF32, LowRankF32Args>(x, packed, bias, residual, activation).Run(LowRankF32);
}

}  // namespace

void BindLowRank(py::module_& m) {
  m.def("pack_lowrank_f32", PackF32, py::arg("down"), py::arg("up"));
  m.def("unpack_lowrank_f32", UnpackF32, py::arg("packed"));
  m.def("inspect_lowrank_f32", Inspect<PackedF32>, py::arg("packed"));
  m.def("lowrank_f32", MultiplyF32, py::arg("x"), py::arg("packed"), py::arg("bias") = py::none(),
        py::arg("residual") = py::none(), py::arg("activation") = "none");
  m.def("pack_lowrank_s8", PackS8, py::arg("down"), py::arg("down_scale"), py::arg("up"), py::arg("up_scale"),
        py::arg("input_scale") = py::none(), py::arg("dense") = py::none(), py::arg("dense_scale") = py::none());
  m.def("unpack_lowrank_s8", UnpackS8, py::arg("packed"));
  m.def("inspect_lowrank_s8", Inspect<PackedS8>, py::arg("packed"));
  m.def("input_scale_lowrank_s8", InputScale, py::arg("packed"));
  m.def("lowrank_s8", RunLinearS8<PackedS8, LowRankS8>, py::arg("x"), py::arg("packed"), py::arg("bias") = py::none(),
        py::arg("residual") = py::none(), py::arg("activation") = "none", py::arg("x_scale") = 0.0f,
        py::arg("x_zero_point") = 0);
}

}  // namespace tersor::bindings

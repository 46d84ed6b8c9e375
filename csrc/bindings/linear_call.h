// One call of an op y = act(x W^T + bias + residual) on NumPy arrays, for any packed weight.
#pragma once
#include <string>

#include "arrays.h"
#include "tersor/executor.h"
#include "tersor/linear_s8.h"

namespace tersor::bindings {

// Packed bytes and what kInspect(data, size) says about them, checked.
template <auto kInspect>
struct PackedArray {
  explicit PackedArray(const py::object& object) : array(ArrayOf<uint8_t>(object, "packed")) {
    if (array.ndim() != 1) throw Error("packed: expected 1 dimension, got shape " + Text(ShapeOf(array)));
    info = kInspect(data(), size());
  }
  const void* data() const { return array.data(); }
  size_t size() const { return static_cast<size_t>(array.size()); }

  py::array_t<uint8_t, py::array::c_style> array;
  decltype(kInspect(nullptr, 0)) info;
};

// The operands that all such ops have, checked, and the result.
template <typename Packed, typename Args>
struct LinearCall {
  LinearCall(const py::object& x_in, const py::object& packed_in, const py::object& bias_in,
             const py::object& residual_in, const std::string& activation)
      : x(Matrix<float>(x_in, "x")),
        packed(packed_in),
        m(x.shape(0)),
        n(packed.info.n),
        bias(bias_in, "bias", {n}),
        residual(residual_in, "residual", {m, n}),
        y({m, n}) {
    CheckShape(x, "x", {m, packed.info.k});
    args.m = m;
    args.x = x.data();
    args.ldx = packed.info.k;
    args.dtype = DType::kF32;
    args.packed = packed.data();
    args.packed_bytes = packed.size();
    args.bias = bias.data;
    args.residual = residual.data;
    args.ldr = n;
    args.activation = ActivationOf(activation);
    args.y = y.mutable_data();
    args.ldy = n;
  }

  py::array_t<float> Run(void (*op)(const Args&, const Executor&)) {
    {
      const py::gil_scoped_release release;
      op(args, PoolExecutor());
    }
    return y;
  }

  py::array_t<float, py::array::c_style> x;
  Packed packed;
  int64_t m, n;
  OptionalFloats bias, residual;
  py::array_t<float> y;
  Args args{};
};

// The ops with 8-bit activations, which have a static range too.
template <typename Packed, void (*kOp)(const LinearS8Args&, const Executor&)>
py::array_t<float> RunLinearS8(const py::object& x, const py::object& packed, const py::object& bias,
                               const py::object& residual, const std::string& activation, float x_scale,
                               int32_t x_zero_point) {
  LinearCall<Packed, LinearS8Args> call(x, packed, bias, residual, activation);
  call.args.x_scale = x_scale;
  call.args.x_zero_point = x_zero_point;
  return call.Run(kOp);
}

}  // namespace tersor::bindings

// tersor._C: the kernels on NumPy arrays and raw addresses. Turns arrays into views, releases the GIL, maps exceptions.
#include <pybind11/gil_safe_call_once.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>

#include "linear_call.h"
#include "tersor/isa.h"

namespace tersor::bindings {
void BindSpmmF32(py::module_& m);       // spmm_f32.cc
void BindSpmmS8(py::module_& m);        // spmm_s8.cc
void BindLowRank(py::module_& m);       // lowrank.cc
void BindLut4(py::module_& m);          // lut4.cc
void BindRecurrent(py::module_& m);     // recurrent.cc
void BindEmbedding(py::module_& m);     // embedding.cc
void BindEagerLinear(py::module_& m);   // eager_linear.cc
void BindEncoderBlock(py::module_& m);  // encoder_block.cc
void BindGraphS8(py::module_& m);       // graph_s8.cc
}  // namespace tersor::bindings

namespace py = pybind11;

namespace {

using namespace tersor::bindings;
using tersor::Error;
using Packed = PackedArray<tersor::ShapeOfPackedS8>;

template <typename T>
T* Address(uintptr_t address, const char* name) {
  if (address == 0) throw Error(std::string(name) + " is a null address");
  return reinterpret_cast<T*>(address);
}

py::array_t<uint8_t> PackS8(const py::object& w_in, const py::object& scale_in, const py::object& input_scale_in) {
  const auto w = Matrix<int8_t>(w_in, "w");
  const auto scale = ArrayOf<float>(scale_in, "scale");
  const int64_t n = w.shape(0), k = w.shape(1);
  CheckShape(scale, "scale", {n});
  const OptionalFloats input_scale(input_scale_in, "input_scale", {k});
  py::array_t<uint8_t> packed = CacheLineBytes(tersor::PackedBytesS8(n, k));
  void* block = packed.mutable_data();
  const size_t bytes = static_cast<size_t>(packed.size());
  const py::gil_scoped_release release;
  tersor::PackBeginS8(n, k, block, bytes);
  tersor::SetInputScaleS8(input_scale.data, block, bytes);
  tersor::PackRowsS8(0, n, w.data(), scale.data(), block, bytes);
  return packed;
}

py::tuple UnpackS8(const py::object& packed_in) {
  const Packed packed(packed_in);
  py::array_t<int8_t> w({packed.info.n, packed.info.k});
  py::array_t<float> scale(packed.info.n);
  int8_t* w_data = w.mutable_data();
  float* scale_data = scale.mutable_data();
  {
    const py::gil_scoped_release release;
    tersor::UnpackRowsS8(0, packed.info.n, packed.data(), packed.size(), w_data, scale_data);
  }
  return py::make_tuple(w, scale);
}

py::object InputScaleS8(const py::object& packed_in) {
  const Packed packed(packed_in);
  const float* values = tersor::InputScaleS8(packed.data(), packed.size());
  return values == nullptr ? py::object(py::none()) : py::array_t<float>(packed.info.k, values);
}

py::dict InspectS8(const py::object& packed_in) {
  const Packed packed(packed_in);
  const tersor::PackedInfoS8 info = tersor::InspectPackedS8(packed.data(), packed.size());
  return py::dict(py::arg("n") = info.n, py::arg("k") = info.k, py::arg("kernel") = info.kernel,
                  py::arg("runnable") = info.runnable);
}

py::array_t<int32_t> GemmS8(const py::object& a_in, const py::object& packed_in) {
  const auto a = Matrix<uint8_t>(a_in, "a");
  const Packed packed(packed_in);
  const int64_t m = a.shape(0), n = packed.info.n, k = packed.info.k;
  CheckShape(a, "a", {m, k});
  py::array_t<int32_t> c({m, n});
  int32_t* c_data = c.mutable_data();
  const py::gil_scoped_release release;
  tersor::GemmS8(m, a.data(), k, packed.data(), packed.size(), c_data, n, tersor::PoolExecutor());
  return c;
}

py::tuple QuantizeRows(const py::object& x_in) {
  const auto x = Matrix<float>(x_in, "x");
  const int64_t m = x.shape(0), k = x.shape(1);
  py::array_t<uint8_t> q({m, k});
  py::array_t<float> scale(m);
  py::array_t<int32_t> zero_point(m), row_sum(m);
  uint8_t* q_data = q.mutable_data();
  float* scale_data = scale.mutable_data();
  int32_t *zero_data = zero_point.mutable_data(), *sum_data = row_sum.mutable_data();
  {
    const py::gil_scoped_release release;
    tersor::QuantizeRows(m, k, x.data(), k, q_data, scale_data, zero_data, sum_data);
  }
  return py::make_tuple(q, scale, zero_point, row_sum);
}

py::array_t<float> Activate(const std::string& name, const py::object& x_in) {
  const tersor::Activation activation = ActivationOf(name);
  const auto x = ArrayOf<float>(x_in, "x");
  py::array_t<float> y(ShapeOf(x));
  float* y_data = y.mutable_data();
  const py::gil_scoped_release release;
  std::copy_n(x.data(), x.size(), y_data);
  tersor::Activate(activation, x.size(), y_data);
  return y;
}

// --- Raw addresses: a layer packs torch memory in blocks of rows, without a second copy of its weight.

void PackBeginS8(int64_t n, int64_t k, uintptr_t packed, size_t bytes) {
  tersor::PackBeginS8(n, k, Address<void>(packed, "packed"), bytes);
}

void SetInputScaleS8(uintptr_t input_scale, uintptr_t packed, size_t bytes) {
  tersor::SetInputScaleS8(Address<const float>(input_scale, "input_scale"), Address<void>(packed, "packed"), bytes);
}

void PackRowsS8(int64_t row_begin, int64_t rows, uintptr_t w, uintptr_t scale, uintptr_t packed, size_t bytes) {
  tersor::PackRowsS8(row_begin, rows, Address<const int8_t>(w, "w"), Address<const float>(scale, "scale"),
                     Address<void>(packed, "packed"), bytes);
}

void UnpackRowsS8(int64_t row_begin, int64_t rows, uintptr_t packed, size_t bytes, uintptr_t w, uintptr_t scale) {
  tersor::UnpackRowsS8(row_begin, rows, Address<const void>(packed, "packed"), bytes, Address<int8_t>(w, "w"),
                       Address<float>(scale, "scale"));
}

py::dict Activations() {
  py::dict codes;
  for (int32_t code = 0; code < tersor::kActivationCount; ++code) codes[kActivationNames[code]] = code;
  return codes;
}

// tersor::Error becomes tersor.errors.TersorError.
void MapErrors() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> error_class;
  error_class.call_once_and_store_result([] { return py::module_::import("tersor.errors").attr("TersorError"); });
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Error& error) {
      py::set_error(error_class.get_stored(), error.what());
    }
  });
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  MapErrors();
  m.doc() = "tersor's kernels on NumPy arrays and raw addresses; use tersor.kernels.";

  m.def("isas_built", tersor::BuiltIsas);
  m.def("isas_available", tersor::AvailableIsas);
  m.def("isa_active", tersor::ActiveIsa);
  m.def("set_isa", tersor::SetIsaCap, py::arg("name"));
  m.def("usable_cpus", tersor::UsableCpus);
  m.def("set_threads", tersor::SetPoolThreads, py::arg("threads"));
  m.def("threads", tersor::PoolThreads);
  m.def("activations", Activations);

  m.def("packed_bytes_s8", tersor::PackedBytesS8, py::arg("n"), py::arg("k"));
  m.def("pack_s8", PackS8, py::arg("w"), py::arg("scale"), py::arg("input_scale") = py::none());
  m.def("input_scale_s8", InputScaleS8, py::arg("packed"));
  m.def("unpack_s8", UnpackS8, py::arg("packed"));
  m.def("inspect_s8", InspectS8, py::arg("packed"));
  m.def("gemm_s8", GemmS8, py::arg("a"), py::arg("packed"));
  m.def("quantize_rows", QuantizeRows, py::arg("x"));
  m.def("linear_s8", RunLinearS8<Packed, tersor::LinearS8>, py::arg("x"), py::arg("packed"),
        py::arg("bias") = py::none(), py::arg("residual") = py::none(), py::arg("activation") = "none",
        py::arg("x_scale") = 0.0f, py::arg("x_zero_point") = 0);
  m.def("activate", Activate, py::arg("name"), py::arg("x"));

  using Unlocked = py::call_guard<py::gil_scoped_release>;
  m.def("run_int8_peak", tersor::RunInt8Peak, py::arg("iterations"), Unlocked());
  m.def("pack_begin_s8", PackBeginS8, py::arg("n"), py::arg("k"), py::arg("packed"), py::arg("bytes"), Unlocked());
  m.def("set_input_scale_s8", SetInputScaleS8, py::arg("input_scale"), py::arg("packed"), py::arg("bytes"), Unlocked());
  m.def("pack_rows_s8", PackRowsS8, py::arg("row_begin"), py::arg("rows"), py::arg("w"), py::arg("scale"),
        py::arg("packed"), py::arg("bytes"), Unlocked());
  m.def("unpack_rows_s8", UnpackRowsS8, py::arg("row_begin"), py::arg("rows"), py::arg("packed"), py::arg("bytes"),
        py::arg("w"), py::arg("scale"), Unlocked());
  tersor::bindings::BindSpmmS8(m);
  tersor::bindings::BindLut4(m);
  BindRecurrent(m);
  BindEmbedding(m);
  BindSpmmF32(m);
  BindLowRank(m);
  tersor::bindings::BindEagerLinear(m);
  BindEncoderBlock(m);
  BindGraphS8(m);
}

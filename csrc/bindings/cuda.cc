// tersor._cuda: the CUDA launchers on device addresses, for tests, benches and callers with CuPy or torch memory. Every
// function puts kernels on `stream` (an integer; 0 is the default stream) of the current device and returns at once.
#include "tersor/cuda.h"

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "tersor/cuda_device.h"

namespace py = pybind11;

namespace tersor::bindings {
void BindCudaSparse(py::module_& m);  // cuda_sparse.cc
}  // namespace tersor::bindings

namespace {

using namespace tersor::cuda;
using tersor::Activation;
using tersor::DType;

template <typename T>
T* At(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void Check(int code, const char* what) {
  if (code != 0) throw tersor::Error(std::string(what) + ": CUDA says '" + ErrorText(code) + "'");
}

Epilogue MakeEpilogue(uintptr_t y, int64_t ldy, int dtype, uintptr_t row_scale, uintptr_t row_zero, uintptr_t col_scale,
                      uintptr_t col_sum, uintptr_t bias, uintptr_t residual, int64_t ldr, int activation,
                      uintptr_t sums) {
  Epilogue epilogue{};
  epilogue.row_scale = At<const float>(row_scale);
  epilogue.row_zero = At<const int32_t>(row_zero);
  epilogue.col_scale = At<const float>(col_scale);
  epilogue.col_sum = At<const int32_t>(col_sum);
  epilogue.bias = At<const float>(bias);
  epilogue.residual = At<const void>(residual);
  epilogue.ldr = ldr;
  epilogue.activation = static_cast<Activation>(activation);
  epilogue.dtype = static_cast<DType>(dtype);
  epilogue.y = At<void>(y);
  epilogue.ldy = ldy;
  epilogue.sums = At<int32_t>(sums);
  return epilogue;
}

void Quantize(int64_t m, int64_t k, uintptr_t x, int64_t ldx, int dtype, uintptr_t q, int64_t ldq, uintptr_t scale,
              uintptr_t zero_point, uintptr_t row_sum, uintptr_t input_scale, float x_scale, int32_t x_zero_point,
              uintptr_t stream) {
  const QuantizeRowsArgs args{m,
                              k,
                              At<const void>(x),
                              ldx,
                              static_cast<DType>(dtype),
                              At<const float>(input_scale),
                              x_scale,
                              x_zero_point,
                              At<uint8_t>(q),
                              ldq,
                              At<float>(scale),
                              At<int32_t>(zero_point),
                              At<int32_t>(row_sum)};
  Check(QuantizeRows(args, At<void>(stream)), "quantize_rows");
}

void PackGemm(int64_t n, int64_t k, uintptr_t w, int64_t ldw, uintptr_t packed, uintptr_t col_sum, uintptr_t stream) {
  Check(PackGemmS8(n, k, At<const int8_t>(w), ldw, At<void>(packed), At<int32_t>(col_sum), At<void>(stream)),
        "pack_gemm_s8");
}

void UnpackGemm(int64_t n, int64_t k, uintptr_t packed, uintptr_t w, int64_t ldw, uintptr_t stream) {
  Check(UnpackGemmS8(n, k, At<const void>(packed), At<int8_t>(w), ldw, At<void>(stream)), "unpack_gemm_s8");
}

void Gemm(int64_t m, int64_t n, int64_t k, uintptr_t a, int64_t lda, uintptr_t packed, const Epilogue& epilogue,
          uintptr_t workspace, int64_t workspace_bytes, int32_t tile, int32_t splits, uintptr_t stream) {
  const GemmS8Args args{
      m,    n,     k, At<const uint8_t>(a), lda, At<const void>(packed), epilogue, At<void>(workspace), workspace_bytes,
      tile, splits};
  Check(GemmS8(args, At<void>(stream)), "gemm_s8");
}

void GemmSkinny(int64_t m, int64_t n, int64_t k, uintptr_t x, int64_t ldx, uintptr_t packed, const Epilogue& epilogue,
                uintptr_t input_scale, uintptr_t workspace, int64_t workspace_bytes, int32_t splits, uintptr_t stream) {
  const GemmS8SkinnyArgs args{m,
                              n,
                              k,
                              At<const void>(x),
                              ldx,
                              At<const float>(input_scale),
                              At<const void>(packed),
                              epilogue,
                              At<void>(workspace),
                              workspace_bytes,
                              splits};
  Check(GemmS8Skinny(args, At<void>(stream)), "gemm_s8_skinny");
}

}  // namespace

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
  m.doc() = "tersor's CUDA launchers on device addresses; tersor.kernels.cuda() returns this module.";
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const tersor::Error& error) {
      py::set_error(py::module_::import("tersor.errors").attr("TersorError"), error.what());
    }
  });
  m.attr("DEPTH_PAD") = kDepthPadS8;
  m.attr("SKINNY_ROWS") = kSkinnyRows;
  m.def("device_problem", DeviceProblem);

  py::class_<Epilogue>(m, "Epilogue")
      .def(py::init(&MakeEpilogue), py::kw_only(), py::arg("y"), py::arg("ldy"), py::arg("dtype"),
           py::arg("row_scale") = 0, py::arg("row_zero") = 0, py::arg("col_scale") = 0, py::arg("col_sum") = 0,
           py::arg("bias") = 0, py::arg("residual") = 0, py::arg("ldr") = 0, py::arg("activation") = 0,
           py::arg("sums") = 0);
  m.def("quantize_rows", Quantize, py::kw_only(), py::arg("m"), py::arg("k"), py::arg("x"), py::arg("ldx"),
        py::arg("dtype"), py::arg("q"), py::arg("ldq"), py::arg("scale"), py::arg("zero_point"), py::arg("row_sum") = 0,
        py::arg("input_scale") = 0, py::arg("x_scale") = 0.0f, py::arg("x_zero_point") = 0, py::arg("stream"));

  m.def("packed_bytes_gemm_s8", PackedBytesGemmS8, py::arg("n"), py::arg("k"));
  m.def("pack_gemm_s8", PackGemm, py::kw_only(), py::arg("n"), py::arg("k"), py::arg("w"), py::arg("ldw"),
        py::arg("packed"), py::arg("col_sum"), py::arg("stream"));
  m.def("unpack_gemm_s8", UnpackGemm, py::kw_only(), py::arg("n"), py::arg("k"), py::arg("packed"), py::arg("w"),
        py::arg("ldw"), py::arg("stream"));
  m.def("gemm_s8_workspace_bytes", GemmS8WorkspaceBytes, py::arg("m"), py::arg("n"), py::arg("k"));
  m.def("gemm_s8", Gemm, py::kw_only(), py::arg("m"), py::arg("n"), py::arg("k"), py::arg("a"), py::arg("lda"),
        py::arg("packed"), py::arg("epilogue"), py::arg("workspace") = 0, py::arg("workspace_bytes") = 0,
        py::arg("tile") = -1, py::arg("splits") = 0, py::arg("stream"));
  m.def("gemm_s8_skinny_workspace_bytes", GemmS8SkinnyWorkspaceBytes, py::arg("m"), py::arg("n"), py::arg("k"));
  m.def("gemm_s8_skinny", GemmSkinny, py::kw_only(), py::arg("m"), py::arg("n"), py::arg("k"), py::arg("x"),
        py::arg("ldx"), py::arg("packed"), py::arg("epilogue"), py::arg("input_scale") = 0, py::arg("workspace") = 0,
        py::arg("workspace_bytes") = 0, py::arg("splits") = 0, py::arg("stream"));
  tersor::bindings::BindCudaSparse(m);
}

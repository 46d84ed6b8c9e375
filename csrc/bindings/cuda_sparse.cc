// The sparse and low-rank CUDA launchers on device addresses, and their packers on NumPy arrays. cuda.cc has the rest.
#include <cstdint>

#include "arrays.h"
#include "tersor/cuda.h"
#include "tersor/cuda_device.h"
#include "tersor/cuda_pack.h"

namespace tersor::bindings {
namespace {

using namespace tersor::cuda;

template <typename T>
T* At(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void Check(int code, const char* what) {
  if (code != 0) throw Error(std::string(what) + ": CUDA says '" + ErrorText(code) + "'");
}

// --- Packers: host memory in and out, no device.

template <typename T>
struct Dense {
  explicit Dense(const py::object& object) : array(Matrix<T>(object, "w")), n(array.shape(0)), k(array.shape(1)) {}
  const T* data() const { return array.data(); }
  py::array_t<T, py::array::c_style> array;
  int64_t n, k;
};

template <typename T>
py::array_t<T> Zeros(int64_t count) {
  py::array_t<T> array(count);
  std::fill_n(array.mutable_data(), count, T(0));
  return array;
}

py::array_t<int32_t> Sums(const py::object& w_in) {
  const Dense<int8_t> w(w_in);
  py::array_t<int32_t> sums = Zeros<int32_t>(w.n);
  ColumnSums(w.n, w.k, w.data(), sums.mutable_data());
  return sums;
}

template <typename T>
py::tuple PackSparse24(const py::object& w_in, Sparse24Bytes (*bytes_of)(int64_t, int64_t),
                       void (*pack)(int64_t, int64_t, const T*, void*, void*)) {
  const Dense<T> w(w_in);
  const Sparse24Bytes bytes = bytes_of(w.n, w.k);
  auto values = Zeros<uint8_t>(bytes.values), metadata = Zeros<uint8_t>(bytes.metadata);
  pack(w.n, w.k, w.data(), values.mutable_data(), metadata.mutable_data());
  return py::make_tuple(values, metadata);
}

py::tuple PackBitmap(const py::object& w_in) {
  const Dense<int8_t> w(w_in);
  const BitmapBytes bytes = PackedBytesBitmapS8(w.n, w.k, w.data());
  auto bitmap = Zeros<uint32_t>(bytes.bitmap / 4);
  auto values = Zeros<int8_t>(bytes.values);
  auto offsets = Zeros<int32_t>(bytes.offsets / 4);
  PackBitmapS8(w.n, w.k, w.data(), bitmap.mutable_data(), values.mutable_data(), offsets.mutable_data());
  return py::make_tuple(bitmap, values, offsets);
}

py::tuple PackBlock(const py::object& w_in) {
  const Dense<int8_t> w(w_in);
  const int64_t blocks = CountBlocksS8(w.n, w.k, w.data());
  auto values = Zeros<int8_t>(blocks * kBlockRowsS8 * kBlockDepthS8);
  auto row_offsets = Zeros<int32_t>((w.n + kBlockRowsS8 - 1) / kBlockRowsS8 + 1), columns = Zeros<int32_t>(blocks);
  PackBlockS8(w.n, w.k, w.data(), values.mutable_data(), row_offsets.mutable_data(), columns.mutable_data());
  return py::make_tuple(values, row_offsets, columns);
}

template <typename T>
py::tuple PackCsr(const py::object& w_in, int64_t (*count)(int64_t, int64_t, const T*),
                  void (*pack)(int64_t, int64_t, const T*, T*, int32_t*, uint16_t*)) {
  const Dense<T> w(w_in);
  const int64_t non_zeros = count(w.n, w.k, w.data());
  auto values = Zeros<T>(non_zeros);
  auto row_offsets = Zeros<int32_t>(w.n + 1);
  auto columns = Zeros<uint16_t>(non_zeros);
  pack(w.n, w.k, w.data(), values.mutable_data(), row_offsets.mutable_data(), columns.mutable_data());
  return py::make_tuple(values, row_offsets, columns);
}

// --- Launchers.

using Launch24 = int (*)(const Sparse24Args&, void*);
template <Launch24 kLaunch>
void Sparse24(int64_t m, int64_t n, int64_t k, uintptr_t a, int64_t lda, uintptr_t values, uintptr_t metadata,
              const Epilogue& epilogue, uintptr_t stream) {
  const Sparse24Args args{m, n, k, At<const void>(a), lda, At<const void>(values), At<const void>(metadata), epilogue};
  Check(kLaunch(args, At<void>(stream)), "sparse24");
}

void Bitmap(int64_t m, int64_t n, int64_t k, uintptr_t a, int64_t lda, uintptr_t bitmap, uintptr_t values,
            uintptr_t offsets, const Epilogue& epilogue, uintptr_t stream) {
  const BitmapS8Args args{m,
                          n,
                          k,
                          At<const uint8_t>(a),
                          lda,
                          At<const uint32_t>(bitmap),
                          At<const int8_t>(values),
                          At<const int32_t>(offsets),
                          epilogue};
  Check(BitmapS8(args, At<void>(stream)), "bitmap_s8");
}

void Block(int64_t m, int64_t n, int64_t k, uintptr_t a, int64_t lda, uintptr_t values, uintptr_t row_offsets,
           uintptr_t column_indices, const Epilogue& epilogue, uintptr_t stream) {
  const BlockS8Args args{m,
                         n,
                         k,
                         At<const uint8_t>(a),
                         lda,
                         At<const void>(values),
                         At<const int32_t>(row_offsets),
                         At<const int32_t>(column_indices),
                         epilogue};
  Check(BlockS8(args, At<void>(stream)), "block_s8");
}

using LaunchCsr = int (*)(const CsrArgs&, void*);
template <LaunchCsr kLaunch>
void Csr(int64_t m, int64_t n, int64_t k, uintptr_t a, int64_t lda, uintptr_t values, uintptr_t row_offsets,
         uintptr_t column_indices, const Epilogue& epilogue, uintptr_t stream) {
  const CsrArgs args{m,
                     n,
                     k,
                     At<const void>(a),
                     lda,
                     At<const void>(values),
                     At<const int32_t>(row_offsets),
                     At<const uint16_t>(column_indices),
                     epilogue};
  Check(kLaunch(args, At<void>(stream)), "csr");
}

using LaunchLowRank = int (*)(const LowRankArgs&, void*);
template <LaunchLowRank kLaunch>
void LowRank(int64_t m, int64_t n, int64_t k, int64_t rank, uintptr_t x, int64_t ldx, uintptr_t down, uintptr_t up,
             const Epilogue& epilogue, uintptr_t down_scale, uintptr_t down_sum, uintptr_t stream) {
  LowRankArgs args{};
  args.m = m;
  args.n = n;
  args.k = k;
  args.rank = rank;
  args.x = At<const void>(x);
  args.ldx = ldx;
  args.down = At<const void>(down);
  args.down_scale = At<const float>(down_scale);
  args.down_sum = At<const int32_t>(down_sum);
  args.up = At<const void>(up);
  args.epilogue = epilogue;
  Check(kLaunch(args, At<void>(stream)), "lowrank");
}

template <typename Function, typename... Extra>
void Launcher(py::module_& m, const char* name, Function function, const Extra&... operands) {
  m.def(name, function, py::kw_only(), py::arg("m"), py::arg("n"), py::arg("k"), py::arg("a"), py::arg("lda"),
        operands..., py::arg("epilogue"), py::arg("stream"));
}

}  // namespace

void BindCudaSparse(py::module_& m) {
  m.attr("MAX_RANK") = kMaxRank;
  m.def("column_sums", Sums, py::arg("w"));
  m.def(
      "pack_sparse24_s8",
      [](const py::object& w) { return PackSparse24<int8_t>(w, PackedBytesSparse24S8, PackSparse24S8); }, py::arg("w"));
  m.def(
      "pack_sparse24_f16",
      [](const py::object& w) { return PackSparse24<uint16_t>(w, PackedBytesSparse24F16, PackSparse24F16); },
      py::arg("w"));
  m.def("pack_bitmap_s8", PackBitmap, py::arg("w"));
  m.def("pack_block_s8", PackBlock, py::arg("w"));
  m.def(
      "pack_csr_s8", [](const py::object& w) { return PackCsr<int8_t>(w, CountNonZerosS8, PackCsrS8); }, py::arg("w"));
  m.def(
      "pack_csr_f32", [](const py::object& w) { return PackCsr<float>(w, CountNonZerosF32, PackCsrF32); },
      py::arg("w"));

  Launcher(m, "sparse24_s8", Sparse24<Sparse24S8>, py::arg("values"), py::arg("metadata"));
  Launcher(m, "sparse24_f16", Sparse24<Sparse24F16>, py::arg("values"), py::arg("metadata"));
  Launcher(m, "bitmap_s8", Bitmap, py::arg("bitmap"), py::arg("values"), py::arg("offsets"));
  Launcher(m, "block_s8", Block, py::arg("values"), py::arg("row_offsets"), py::arg("column_indices"));
  Launcher(m, "csr_s8", Csr<CsrS8>, py::arg("values"), py::arg("row_offsets"), py::arg("column_indices"));
  Launcher(m, "csr_f32", Csr<CsrF32>, py::arg("values"), py::arg("row_offsets"), py::arg("column_indices"));
  m.def("lowrank_f16", LowRank<LowRankF16>, py::kw_only(), py::arg("m"), py::arg("n"), py::arg("k"), py::arg("rank"),
        py::arg("x"), py::arg("ldx"), py::arg("down"), py::arg("up"), py::arg("epilogue"), py::arg("down_scale") = 0,
        py::arg("down_sum") = 0, py::arg("stream"));
  m.def("lowrank_s8", LowRank<LowRankS8>, py::kw_only(), py::arg("m"), py::arg("n"), py::arg("k"), py::arg("rank"),
        py::arg("x"), py::arg("ldx"), py::arg("down"), py::arg("up"), py::arg("epilogue"), py::arg("down_scale"),
        py::arg("down_sum"), py::arg("stream"));
}

}  // namespace tersor::bindings

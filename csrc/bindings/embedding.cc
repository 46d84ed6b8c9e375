// Packed embeddings on NumPy arrays.
#include "arrays.h"
#include "tersor/embedding_s8.h"

namespace tersor::bindings {
namespace {

py::array_t<uint8_t> Pack(const py::object& data_in, const py::object& scale_in, int64_t dim, int32_t bits) {
  const auto data = Matrix<uint8_t>(data_in, "data");
  const auto scale = ArrayOf<float>(scale_in, "scale");
  const EmbeddingSpec spec{data.shape(0), dim, bits};
  py::array_t<uint8_t> packed = CacheLineBytes(PackedBytesEmbedding(spec));
  CheckShape(data, "data", {spec.rows, spec.row_bytes()});
  CheckShape(scale, "scale", {spec.rows});
  PackEmbedding(spec, data.data(), scale.data(), packed.mutable_data(), static_cast<size_t>(packed.size()));
  return packed;
}

py::tuple Unpack(const py::object& packed_in) {
  const auto packed = ArrayOf<uint8_t>(packed_in, "packed");
  const size_t bytes = static_cast<size_t>(packed.size());
  const EmbeddingSpec spec = SpecOfEmbedding(packed.data(), bytes);
  py::array_t<uint8_t> data({spec.rows, spec.row_bytes()});
  py::array_t<float> scale(spec.rows);
  UnpackEmbedding(packed.data(), bytes, data.mutable_data(), scale.mutable_data());
  return py::make_tuple(data, scale);
}

}  // namespace

void BindEmbedding(py::module_& m) {
  m.def("pack_embedding", Pack, py::arg("data"), py::arg("scale"), py::arg("dim"), py::arg("bits"));
  m.def("unpack_embedding", Unpack, py::arg("packed"));
}

}  // namespace tersor::bindings

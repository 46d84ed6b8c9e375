// Encoder blocks on NumPy arrays.
#include "tersor/encoder_block.h"

#include <pybind11/stl.h>

#include "arrays.h"

namespace tersor::bindings {
namespace {

constexpr const char* kProducts[kEncoderProducts] = {"qkv", "out", "ffn_in", "ffn_out"};
constexpr const char* kKinds[kEncoderWeightKinds] = {"dense", "sparse", "low_rank"};

using Bytes = py::array_t<uint8_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

Bytes BytesOf(const py::object& object, const char* name) {
  Bytes array = ArrayOf<uint8_t>(object, name);
  if (array.ndim() != 1) throw Error(std::string(name) + ": expected 1 dimension, got shape " + Text(ShapeOf(array)));
  return array;
}

py::object Item(const py::dict& config, const char* key) {
  if (!config.contains(key)) throw Error(std::string("config: '") + key + "' is missing");
  return config[key];
}

template <typename T>
T Value(const py::dict& config, const char* key) {
  const py::object value = Item(config, key);
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    throw Error(std::string("config: '") + key + "' is " + std::string(py::repr(value)));
  }
}

EncoderBlockConfig ConfigOf(const py::dict& config) {
  return {Value<int64_t>(config, "hidden"),
          Value<int64_t>(config, "heads"),
          Value<int64_t>(config, "head_dim"),
          Value<int64_t>(config, "ffn"),
          Value<bool>(config, "norm_first"),
          ActivationOf(Value<std::string>(config, "activation")),
          {Value<float>(config, "eps1"), Value<float>(config, "eps2")},
          Value<float>(config, "scale")};
}

Bytes Pack(const py::dict& config_in, const py::object& qkv, const py::object& out, const py::object& ffn_in,
           const py::object& ffn_out, const py::sequence& biases, const py::sequence& norms) {
  const EncoderBlockConfig config = ConfigOf(config_in);
  if (py::len(biases) != kEncoderProducts || py::len(norms) != 4)
    throw Error("biases: expected 4 arrays or None, and norms: gamma1, beta1, gamma2, beta2; got " +
                std::to_string(py::len(biases)) + " and " + std::to_string(py::len(norms)));
  const py::object weights[] = {qkv, out, ffn_in, ffn_out};
  const py::ssize_t n[] = {3 * config.heads * config.head_dim, config.hidden, config.ffn, config.hidden};
  std::vector<py::object> alive;
  EncoderBlockParts parts{};
  for (int i = 0; i < kEncoderProducts; ++i) {
    const Bytes weight = BytesOf(weights[i], kProducts[i]);
    const OptionalFloats bias(biases[i], (std::string(kProducts[i]) + " bias").c_str(), {n[i]});
    const std::string name = std::string(i % 2 == 0 ? "gamma" : "beta") + std::to_string(i / 2 + 1);
    const Floats norm = ArrayOf<float>(norms[i], name.c_str());
    CheckShape(norm, name.c_str(), {config.hidden});
    parts.weight[i] = weight.data();
    parts.weight_bytes[i] = static_cast<size_t>(weight.size());
    parts.bias[i] = bias.data;
    (i % 2 == 0 ? parts.gamma : parts.beta)[i / 2] = norm.data();
    alive.insert(alive.end(), {weight, bias.array, norm});
  }
  Bytes packed = CacheLineBytes(PackedBytesEncoderBlock(config, parts));
  PackEncoderBlock(config, parts, packed.mutable_data(), static_cast<size_t>(packed.size()));
  return packed;
}

py::dict Inspect(const py::object& packed_in) {
  const Bytes packed = BytesOf(packed_in, "packed");
  const EncoderBlockInfo info = InspectEncoderBlock(packed.data(), static_cast<size_t>(packed.size()));
  const EncoderBlockConfig& c = info.config;
  py::list parts;
  py::dict floats;
  for (int i = 0; i < kEncoderProducts; ++i) {
    const auto& product = info.product[i];
    parts.append(py::dict(py::arg("name") = kProducts[i], py::arg("kind") = kKinds[static_cast<int>(product.kind)],
                          py::arg("offset") = product.offset, py::arg("bytes") = product.bytes,
                          py::arg("n") = product.n, py::arg("k") = product.k, py::arg("kernel") = product.kernel));
    floats[(std::string(kProducts[i]) + "_bias").c_str()] = py::make_tuple(product.bias_offset, product.n);
  }
  for (int i = 0; i < 2; ++i) {
    floats[("gamma" + std::to_string(i + 1)).c_str()] = py::make_tuple(info.gamma_offset[i], c.hidden);
    floats[("beta" + std::to_string(i + 1)).c_str()] = py::make_tuple(info.beta_offset[i], c.hidden);
  }
  return py::dict(py::arg("hidden") = c.hidden, py::arg("heads") = c.heads, py::arg("head_dim") = c.head_dim,
                  py::arg("ffn") = c.ffn, py::arg("norm_first") = c.norm_first,
                  py::arg("activation") = kActivationNames[static_cast<int>(c.activation)], py::arg("eps1") = c.eps[0],
                  py::arg("eps2") = c.eps[1], py::arg("scale") = c.scale, py::arg("runnable") = info.runnable,
                  py::arg("parts") = parts, py::arg("floats") = floats);
}

constexpr const char* kParts[kEncoderParts] = {"qkv", "out", "ffn_in", "ffn_out", "int16", "attention", "norm", "rows"};

py::object Run(const py::object& x_in, const py::object& packed_in, const py::object& keep_in,
               const py::object& score_bias_in, bool timed) {
  const auto x = ArrayOf<float>(x_in, "x");
  const Bytes packed = BytesOf(packed_in, "packed");
  const EncoderBlockConfig c = InspectEncoderBlock(packed.data(), static_cast<size_t>(packed.size())).config;
  if (x.ndim() != 3 || x.shape(2) != c.hidden)
    throw Error("x: expected shape [batch, tokens, " + std::to_string(c.hidden) + "], got " + Text(ShapeOf(x)));
  EncoderBlockArgs args{};
  args.batch = x.shape(0);
  args.tokens = x.shape(1);
  Bytes keep;
  if (!keep_in.is_none()) {
    const bool is_bool = py::isinstance<py::array_t<bool>>(keep_in);
    keep = ArrayOf<uint8_t>(is_bool ? py::object(keep_in.attr("view")("uint8")) : keep_in, "keep");
    CheckShape(keep, "keep", {x.shape(0), x.shape(1)});
    args.keep = keep.data();
  }
  const OptionalFloats score_bias(score_bias_in, "score_bias", {c.heads, x.shape(1), x.shape(1)});
  Floats y(ShapeOf(x));
  args.x = x.data();
  args.ldx = args.ldy = c.hidden;
  args.score_bias = score_bias.data;
  args.packed = packed.data();
  args.packed_bytes = static_cast<size_t>(packed.size());
  args.y = y.mutable_data();
  double seconds[kEncoderParts] = {};
  if (timed) args.seconds = seconds;
  {
    const py::gil_scoped_release release;
    EncoderBlock(args, PoolExecutor());
  }
  if (!timed) return y;
  py::dict times;
  for (int i = 0; i < kEncoderParts; ++i) times[kParts[i]] = seconds[i];
  return times;
}

}  // namespace

void BindEncoderBlock(py::module_& m) {
  m.def("pack_encoder_block", Pack, py::arg("config"), py::arg("qkv"), py::arg("out"), py::arg("ffn_in"),
        py::arg("ffn_out"), py::arg("biases"), py::arg("norms"));
  m.def("inspect_encoder_block", Inspect, py::arg("packed"));
  m.def("encoder_block", Run, py::arg("x"), py::arg("packed"), py::arg("keep") = py::none(),
        py::arg("score_bias") = py::none(), py::arg("timed") = false);
}

}  // namespace tersor::bindings

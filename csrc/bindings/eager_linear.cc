// The way through linear layers in eager mode. A torch op costs 2.5 us a call before it computes anything, more than a
// small product takes. Here the tensors are read and made through torch's own DLPack exchange table, and
// whatever is not plain eager inference on plain tensors answers None: the caller then takes the torch op, which knows
// everything and has all the error messages.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <utility>

#include "bindings/dlpack_abi.h"
#include "bindings/linear_ops.h"
#include "bindings/row_stride.h"
#include "tersor/executor.h"

namespace py = pybind11;

namespace {

using tersor::dlpack::View;

constexpr int kProbes = 3;
constexpr int kMaxDims = 8;
// A product of about 2 us keeps the GIL: letting go and taking it again costs a tenth of that and helps nobody.
constexpr int64_t kShortMacs = int64_t{1} << 18;
constexpr int64_t kMostMacs = int64_t{1} << 62;

// Set once by EagerSetup and never freed.
struct Torch {
  const tersor::dlpack::Exchange* exchange;
  PyTypeObject *tensor, *parameter;
  PyObject *requires_grad, *is_neg, *level;  // names, as are those of the layer's attributes:
  PyObject *buffers, *packed, *parameters, *bias, *out_features, *activation, *x_scale, *x_zero_point;
  PyObject* forward_ad;  // the dictionary of that module
  std::array<PyObject*, kProbes> probes;
} torch_;

// What an owned reference becomes when it is only asked whether it is a certain object.
bool Is(PyObject* owned, PyObject* expected) {
  Py_XDECREF(owned);
  return owned == expected;
}

// Forward-mode AD hides in plain tensors; a level above -1 says that some may be dual.
bool ForwardAd() {
  PyObject* level = PyDict_GetItemWithError(torch_.forward_ad, torch_.level);  // borrowed
  return level == nullptr || PyLong_AsLong(level) != -1;
}

// No dispatch mode, no tracer, no profiler: each probe is a function that returns None, False or 0 then.
bool PlainEager() {
  for (PyObject* probe : torch_.probes) {
    PyObject* found = PyObject_CallNoArgs(probe);
    const bool quiet = found == Py_None || found == Py_False || (found != nullptr && PyObject_Not(found) == 1);
    Py_XDECREF(found);
    if (!quiet) return false;
  }
  return !ForwardAd();
}

// The view of a dense CPU tensor.
bool Look(PyObject* object, View* view) {
  if (Py_TYPE(object) != torch_.tensor && Py_TYPE(object) != torch_.parameter) return false;
  if (torch_.exchange->look(object, view) != 0) return false;
  view->data = static_cast<char*>(view->data) + view->byte_offset;
  return view->device_type == tersor::dlpack::kCpu && view->dtype.lanes == 1;
}

// Of floats, also: no gradient, no lazy negation.
bool LookAtFloats(PyObject* object, View* view) {
  return Look(object, view) && Is(PyObject_GetAttr(object, torch_.requires_grad), Py_False) &&
         Is(PyObject_CallMethodNoArgs(object, torch_.is_neg), Py_False);
}

bool DTypeOf(const View& view, tersor::DType* dtype) {
  const auto [code, bits, lanes] = view.dtype;
  if (code == tersor::dlpack::kFloat && bits == 32)
    *dtype = tersor::DType::kF32;
  else if (code == tersor::dlpack::kFloat && bits == 16)
    *dtype = tersor::DType::kF16;
  else if (code == tersor::dlpack::kBfloat && bits == 16)
    *dtype = tersor::DType::kBf16;
  else
    return false;
  return true;
}

template <typename Args>
bool ReadPacked(PyObject* object, Args* args) {
  View packed;
  if (!Look(object, &packed) || packed.ndim != 1 || packed.strides[0] != 1) return false;
  if (packed.dtype.code != tersor::dlpack::kUInt || packed.dtype.bits != 8) return false;
  args->packed = packed.data;
  args->packed_bytes = static_cast<size_t>(packed.shape[0]);
  return true;
}

template <typename Args>
bool ReadBias(PyObject* object, int64_t n, Args* args) {
  if (object == Py_None) return true;
  View bias;
  if (!LookAtFloats(object, &bias) || bias.ndim != 1 || bias.shape[0] != n || bias.strides[0] != 1) return false;
  args->bias = static_cast<const float*>(bias.data);
  return bias.dtype.code == tersor::dlpack::kFloat && bias.dtype.bits == 32;
}

// Rows of x as they lie.
template <typename Args>
bool ReadRows(PyObject* object, int64_t n, View* x, Args* args) {
  if (!LookAtFloats(object, x) || x->ndim < 1 || x->ndim > kMaxDims || !DTypeOf(*x, &args->dtype)) return false;
  const int64_t k = x->shape[x->ndim - 1];
  args->m = 1;
  for (int32_t i = 0; i < x->ndim - 1; ++i) args->m *= x->shape[i];
  if (k < 1 || n < 1 || args->m < 1 || args->m > kMostMacs / n / k) return false;
  args->x = x->data;
  args->ldx = tersor::RowStride(x->shape, x->strides, x->ndim);
  return args->ldx >= 0 && reinterpret_cast<uintptr_t>(x->data) % (x->dtype.bits / 8) == 0;
}

void IgnoreFailure(void*, const char*, const char*) {}

template <typename Args>
PyObject* NewOutput(const View& x, int64_t n, Args* args) {
  std::array<int64_t, kMaxDims> shape;
  for (int32_t i = 0; i < x.ndim; ++i) shape[static_cast<size_t>(i)] = i == x.ndim - 1 ? n : x.shape[i];
  View prototype = x;
  prototype.shape = shape.data();
  tersor::dlpack::Managed* managed = nullptr;
  if (torch_.exchange->allocate(&prototype, &managed, nullptr, IgnoreFailure) != 0) return nullptr;
  args->y = static_cast<char*>(managed->tensor.data) + managed->tensor.byte_offset;
  args->ldy = n;
  void* object = nullptr;
  return torch_.exchange->give(managed, &object) == 0 ? static_cast<PyObject*>(object) : nullptr;
}

template <typename Op>
bool HasShape(const typename Op::Args& args, int64_t n, int64_t k) noexcept {
  try {
    const auto weight = Op::Shape(args.packed, args.packed_bytes);
    return weight.n == n && weight.k == k;
  } catch (const std::exception&) {
    return false;
  }
}

template <typename Op>
bool Compute(const typename Op::Args& args) noexcept {
  try {
    Op::Run(args, tersor::HostExecutor());
    return true;
  } catch (const std::exception&) {
    return false;  // the torch op will say what is wrong
  }
}

// What a PackedLinear keeps in its __dict__; a null member means that something is missing. The tensors are held:
// another thread may load other weights into the layer while this one computes.
struct Layer {
  explicit Layer(PyObject* module) : dict(PyObject_GenericGetDict(module, nullptr)) {
    if (dict == nullptr) return;
    packed = Entry(Entry(dict, torch_.buffers), torch_.packed);
    bias = Entry(Entry(dict, torch_.parameters), torch_.bias);
    Py_XINCREF(packed);
    Py_XINCREF(bias);
  }
  ~Layer() {
    Py_XDECREF(packed);
    Py_XDECREF(bias);
    Py_XDECREF(dict);
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  static PyObject* Entry(PyObject* of, PyObject* name) {
    return of != nullptr && PyDict_Check(of) ? PyDict_GetItemWithError(of, name) : nullptr;
  }
  long long Int(PyObject* name) const {
    PyObject* value = Entry(dict, name);
    return value == nullptr ? -1 : PyLong_AsLongLong(value);
  }
  double Float(PyObject* name) const {
    PyObject* value = Entry(dict, name);
    return value == nullptr ? -1.0 : PyFloat_AsDouble(value);
  }

  PyObject *dict, *packed = nullptr, *bias = nullptr;
};

// y, or null for "take the torch op", perhaps with an exception set.
template <typename Op>
PyObject* TryLinear(PyObject* module, PyObject* input) {
  const Layer layer(module);
  if (layer.packed == nullptr || layer.bias == nullptr || !PlainEager()) return nullptr;
  typename Op::Args args{};
  const int64_t n = layer.Int(torch_.out_features);
  args.activation = static_cast<tersor::Activation>(layer.Int(torch_.activation));
  if constexpr (Op::kQuantises) {
    args.x_scale = static_cast<float>(layer.Float(torch_.x_scale));
    args.x_zero_point = static_cast<int32_t>(layer.Int(torch_.x_zero_point));
  }
  View x;
  if (PyErr_Occurred() != nullptr || !ReadRows(input, n, &x, &args) || !ReadPacked(layer.packed, &args) ||
      !ReadBias(layer.bias, n, &args))
    return nullptr;
  const int64_t k = x.shape[x.ndim - 1];
  PyObject* y = HasShape<Op>(args, n, k) ? NewOutput(x, n, &args) : nullptr;
  if (y == nullptr) return nullptr;
  bool done;
  if (args.m * n * k <= kShortMacs) {
    done = Compute<Op>(args);
  } else {
    Py_BEGIN_ALLOW_THREADS;
    done = Compute<Op>(args);
    Py_END_ALLOW_THREADS;
  }
  if (!done) Py_CLEAR(y);
  return y;
}

template <typename Op>
PyObject* EagerLinear(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  PyObject* y = torch_.exchange == nullptr || count != 2 ? nullptr : TryLinear<Op>(arguments[0], arguments[1]);
  if (y != nullptr) return y;
  PyErr_Clear();
  Py_RETURN_NONE;
}

// METH_FASTCALL functions go through this cast everywhere, CPython itself included.
template <typename Op>
PyMethodDef Method(const char* name) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(EagerLinear<Op>)), METH_FASTCALL,
          "(layer, x): the layer's output, or None where the torch op must be taken"};
}

PyMethodDef methods[] = {
    Method<tersor::LinearS8Op>("eager_linear_s8"),
    Method<tersor::LinearLut4Op>("eager_linear_lut4"),
    Method<tersor::SpmmS8Op>("eager_spmm_s8"),
    Method<tersor::SpmmF32Op>("eager_spmm_f32"),
    Method<tersor::LowRankS8Op>("eager_lowrank_s8"),
    Method<tersor::LowRankF32Op>("eager_lowrank_f32"),
    {nullptr, nullptr, 0, nullptr},
};

// False when this torch has no exchange table that is understood here, or this Python no GIL.
bool EagerSetup(const py::type& tensor, const py::type& parameter, const py::object& forward_ad,
                const std::array<py::object, kProbes>& probes) {
#ifdef Py_GIL_DISABLED
  return false;  // dictionaries are read here by borrowed references
#endif
  if (!py::hasattr(tensor, "__dlpack_c_exchange_api__")) return false;
  const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api") == 0) return false;
  const auto* exchange =
      static_cast<const tersor::dlpack::Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (exchange->version.major != tersor::dlpack::kMajor || exchange->look == nullptr) return false;
  torch_.tensor = reinterpret_cast<PyTypeObject*>(py::type(tensor).release().ptr());
  torch_.parameter = reinterpret_cast<PyTypeObject*>(py::type(parameter).release().ptr());
  torch_.forward_ad = py::object(forward_ad.attr("__dict__")).release().ptr();
  const std::pair<PyObject**, const char*> names[] = {
      {&torch_.requires_grad, "requires_grad"},
      {&torch_.is_neg, "is_neg"},
      {&torch_.level, "_current_level"},
      {&torch_.buffers, "_buffers"},
      {&torch_.packed, "packed"},
      {&torch_.parameters, "_parameters"},
      {&torch_.bias, "bias"},
      {&torch_.out_features, "out_features"},
      {&torch_.activation, "_activation_code"},
      {&torch_.x_scale, "x_scale"},
      {&torch_.x_zero_point, "x_zero_point"},
  };
  for (const auto& [name, text] : names) *name = PyUnicode_InternFromString(text);
  for (size_t i = 0; i < probes.size(); ++i) torch_.probes[i] = py::object(probes[i]).release().ptr();
  torch_.exchange = exchange;
  return true;
}

}  // namespace

namespace tersor::bindings {

void BindEagerLinear(py::module_& m) {
  m.def("eager_setup", EagerSetup, py::arg("tensor"), py::arg("parameter"), py::arg("forward_ad"), py::arg("probes"));
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace tersor::bindings

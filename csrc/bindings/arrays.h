// NumPy arrays in and out of the bindings: the only conversions there are.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "tersor/error.h"
#include "tersor/types.h"

namespace tersor::bindings {

namespace py = pybind11;

// In the order of Activation.
constexpr const char* kActivationNames[] = {"none", "relu", "gelu", "gelu_tanh", "silu"};
static_assert(sizeof kActivationNames / sizeof *kActivationNames == kActivationCount, "one name per code");

// --- Arrays in.

constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;

using Shape = std::vector<py::ssize_t>;

inline Shape ShapeOf(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

inline std::string Text(const Shape& shape) {
  std::string text;
  for (const py::ssize_t extent : shape) text += (text.empty() ? "[" : ", ") + std::to_string(extent);
  return text.empty() ? "[]" : text + "]";
}

// Any strides are welcome (a strided array is copied), another dtype is not: a conversion would change the numbers.
template <typename T>
py::array_t<T, py::array::c_style> ArrayOf(const py::object& object, const char* name) {
  if (py::array_t<T, py::array::c_style | kAligned>::check_(object))
    return py::reinterpret_borrow<py::array_t<T, py::array::c_style>>(object);
  const py::dtype expected = py::dtype::of<T>();
  const bool is_array = py::isinstance<py::array>(object);
  const py::object got = is_array ? object.attr("dtype") : py::type::of(object).attr("__name__");
  if (!is_array || !got.equal(expected))
    throw Error(std::string(name) + ": expected a numpy array of " + std::string(py::str(expected)) + ", got " +
                std::string(py::str(got)));
  return py::array_t<T, py::array::c_style | kAligned>::ensure(object);
}

template <typename T>
py::array_t<T, py::array::c_style> Matrix(const py::object& object, const char* name) {
  py::array_t<T, py::array::c_style> array = ArrayOf<T>(object, name);
  if (array.ndim() != 2) throw Error(std::string(name) + ": expected 2 dimensions, got shape " + Text(ShapeOf(array)));
  return array;
}

inline void CheckShape(const py::array& array, const char* name, const Shape& expected) {
  if (ShapeOf(array) != expected)
    throw Error(std::string(name) + ": expected shape " + Text(expected) + ", got " + Text(ShapeOf(array)));
}

// An argument that may be None, which is a null pointer.
struct OptionalFloats {
  OptionalFloats(const py::object& object, const char* name, const Shape& expected) {
    if (object.is_none()) return;
    array = ArrayOf<float>(object, name);
    CheckShape(array, name, expected);
    data = array.data();
  }
  py::array_t<float, py::array::c_style> array;
  const float* data = nullptr;
};

inline Activation ActivationOf(const std::string& name) {
  std::string all;
  for (int32_t code = 0; code < kActivationCount; ++code) {
    if (name == kActivationNames[code]) return static_cast<Activation>(code);
    all += (code == 0 ? "" : ", ") + std::string(kActivationNames[code]);
  }
  throw Error("activation: '" + name + "' is unknown; there are " + all);
}

// --- Arrays out.

// Starts at a cache line, unlike NumPy's own memory: panels are read a cache line at a time.
inline py::array_t<uint8_t> CacheLineBytes(size_t bytes) {
  constexpr size_t kLine = 64;
  void* memory = std::aligned_alloc(kLine, (bytes + kLine - 1) / kLine * kLine);
  if (memory == nullptr) throw std::bad_alloc();
  const py::capsule owner(memory, [](void* block) { std::free(block); });
  return py::array_t<uint8_t>(static_cast<py::ssize_t>(bytes), static_cast<uint8_t*>(memory), owner);
}

}  // namespace tersor::bindings

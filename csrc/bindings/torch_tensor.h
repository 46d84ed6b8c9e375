// What every torch op needs: tensors that own their handles, rows, error names, torch's own threads.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bindings/row_stride.h"
#include "bindings/torch_shim.h"
#include "tersor/executor.h"

namespace tersor::shim {

inline void Check(AOTITorchError code, const char* what) {
  if (code != 0) throw Error(std::string("tersor: torch could not ") + what + "; its own message is on stderr");
}

struct Device {
  int32_t type, index;
  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
};

// Owns one handle: boxed kernels own the inputs that they take from the stack.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  explicit Tensor(StableIValue value) : handle_(reinterpret_cast<AtenTensorHandle>(value)) {}
  Tensor(Tensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Tensor() {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
  }

  AtenTensorHandle get() const { return handle_; }
  StableIValue Release() { return reinterpret_cast<StableIValue>(std::exchange(handle_, nullptr)); }

  int64_t dim() const { return Read<int64_t>(aoti_torch_get_dim); }
  int64_t numel() const { return Read<int64_t>(aoti_torch_get_numel); }
  const int64_t* sizes() const { return Read<int64_t*>(aoti_torch_get_sizes); }      // borrowed
  const int64_t* strides() const { return Read<int64_t*>(aoti_torch_get_strides); }  // borrowed
  int32_t dtype() const { return Read<int32_t>(aoti_torch_get_dtype); }
  int32_t device_type() const { return Read<int32_t>(aoti_torch_get_device_type); }
  Device device() const { return {device_type(), Read<int32_t>(aoti_torch_get_device_index)}; }
  int32_t layout() const { return Read<int32_t>(aoti_torch_get_layout); }
  const void* data() const { return Read<const void*>(torch_get_const_data_ptr); }
  void* mutable_data() const { return Read<void*>(torch_get_mutable_data_ptr); }

 private:
  template <typename T>
  T Read(AOTITorchError (*get)(AtenTensorHandle, T*)) const {
    T value;
    Check(get(handle_, &value), "read a tensor");
    return value;
  }

  AtenTensorHandle handle_ = nullptr;
};

// Codes are constant for the life of the process; these are read once.
struct Codes {
  int32_t f32 = aoti_torch_dtype_float32(), f16 = aoti_torch_dtype_float16(), bf16 = aoti_torch_dtype_bfloat16();
  int32_t u8 = aoti_torch_dtype_uint8(), cpu = aoti_torch_device_type_cpu();
  int32_t cuda = aoti_torch_device_type_cuda();
};
inline const Codes codes;

inline std::string DTypeName(int32_t code) {
  const std::pair<int32_t, const char*> names[] = {{codes.f32, "float32"},
                                                   {codes.f16, "float16"},
                                                   {codes.bf16, "bfloat16"},
                                                   {codes.u8, "uint8"},
                                                   {aoti_torch_dtype_float64(), "float64"},
                                                   {aoti_torch_dtype_int8(), "int8"},
                                                   {aoti_torch_dtype_int16(), "int16"},
                                                   {aoti_torch_dtype_int32(), "int32"},
                                                   {aoti_torch_dtype_int64(), "int64"},
                                                   {aoti_torch_dtype_bool(), "bool"}};
  for (const auto& [known, name] : names)
    if (known == code) return name;
  return "dtype " + std::to_string(code);
}

inline std::string DeviceName(int32_t code) {
  if (code == codes.cpu) return "cpu";
  return code == codes.cuda ? "cuda" : "device type " + std::to_string(code);
}

inline std::string ShapeText(const int64_t* sizes, int64_t dim) {
  std::string text = "[";
  for (int64_t i = 0; i < dim; ++i) text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  return text + "]";
}

// A new contiguous tensor [sizes[0], .., sizes[dim - 2], last].
inline Tensor Empty(const int64_t* sizes, int64_t dim, int64_t last, int32_t dtype, Device device) {
  constexpr int64_t kInline = 8;
  int64_t few[2 * kInline];
  std::vector<int64_t> many(dim <= kInline ? 0 : static_cast<size_t>(2 * dim));
  int64_t* shape = many.empty() ? few : many.data();
  int64_t* strides = shape + dim;
  int64_t step = 1;
  for (int64_t i = dim; i-- > 0;) {
    shape[i] = i == dim - 1 ? last : sizes[i];
    strides[i] = step;
    step *= std::max<int64_t>(shape[i], 1);
  }
  AtenTensorHandle handle;
  Check(aoti_torch_empty_strided(dim, shape, strides, dtype, device.type, device.index, &handle), "allocate a tensor");
  return Tensor(handle);
}

inline Tensor ContiguousCopy(const Tensor& source, const int64_t* sizes, int64_t dim, int32_t dtype) {
  Tensor copy = Empty(sizes, dim, sizes[dim - 1], dtype, source.device());
  Check(aoti_torch_copy_(copy.get(), source.get(), 0), "copy a tensor");
  return copy;
}

// Rows of sizes[dim - 1] elements: the tensor's own memory where strides and alignment allow it, else a contiguous
// copy.
struct Rows {
  Rows(const Tensor& tensor, const int64_t* sizes, int64_t dim, int32_t dtype)
      : data(tensor.data()), stride(RowStride(sizes, tensor.strides(), dim)) {
    const uintptr_t element = dtype == codes.f32 ? 4 : 2;
    if (stride >= 0 && reinterpret_cast<uintptr_t>(data) % element == 0) return;
    copy = ContiguousCopy(tensor, sizes, dim, dtype);
    data = copy.data();
    stride = sizes[dim - 1];
  }

  const void* data;
  int64_t stride;
  Tensor copy;
};

// Torch's own pool, so that torch.set_num_threads and OMP_NUM_THREADS hold; serial inside a parallel region.
inline void RunInTorchPool(int32_t tasks, void (*fn)(void* context, int32_t task), void* context) {
  struct Call {
    void (*fn)(void* context, int32_t task);
    void* context;
  } call{fn, context};
  const auto run_range = [](int64_t begin, int64_t end, void* opaque) {
    const Call& call = *static_cast<const Call*>(opaque);
    for (int64_t task = begin; task < end; ++task) call.fn(call.context, static_cast<int32_t>(task));
  };
  Check(torch_parallel_for(0, tasks, 1, run_range, &call), "run a parallel loop");
}

inline Executor TorchExecutor() {
  static const int32_t usable = UsableCpus();
  uint32_t threads;
  Check(torch_get_num_threads(&threads), "tell its thread count");
  return {std::max(std::min(static_cast<int32_t>(threads), usable), 1), RunInTorchPool};
}

}  // namespace tersor::shim

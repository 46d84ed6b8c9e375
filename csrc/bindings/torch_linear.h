// The torch op op(x, packed, bias, residual, out_features, activation, ...) -> y for any packed weight: reads and
// checks the arguments, makes y, and calls the op of libtersor once.
// An Op is one of bindings/linear_ops.h.
#pragma once
#include <algorithm>
#include <cstring>
#include <string>

#include "bindings/torch_tensor.h"
#include "tersor/types.h"

namespace tersor::shim {

[[noreturn]] inline void Fail(const char* op, const std::string& what) {
  throw Error("tersor::" + std::string(op) + ": " + what);
}

[[noreturn]] inline void FailDType(const char* op, const char* name, const std::string& expected, int32_t got) {
  Fail(op, std::string(name) + ": expected " + expected + ", got " + DTypeName(got));
}

inline int32_t Narrow(const char* op, StableIValue value, const char* name) {
  const int64_t wide = static_cast<int64_t>(value);
  if (wide != static_cast<int32_t>(wide)) Fail(op, std::string(name) + "=" + std::to_string(wide) + " is out of range");
  return static_cast<int32_t>(wide);
}

inline float AsFloat(StableIValue value) {
  double wide;
  std::memcpy(&wide, &value, sizeof wide);
  return static_cast<float>(wide);
}

inline DType DTypeOf(const char* op, int32_t code) {
  if (code == codes.f32) return DType::kF32;
  if (code == codes.bf16) return DType::kBf16;
  if (code == codes.f16) return DType::kF16;
  FailDType(op, "x", "float32, bfloat16 or float16", code);
}

inline size_t PackedBytes(const char* op, const Tensor& packed) {
  if (packed.dtype() != codes.u8) FailDType(op, "packed", "uint8", packed.dtype());
  const int64_t dim = packed.dim();
  if (dim != 1 || packed.strides()[0] != 1)
    Fail(op, "packed: expected a contiguous 1-d tensor, got shape " + ShapeText(packed.sizes(), dim) +
                 (dim == 1 ? " with stride " + std::to_string(packed.strides()[0]) : ""));
  return static_cast<size_t>(packed.sizes()[0]);
}

// Null for an empty bias. `bias` is replaced by a contiguous float32 copy where it is not one already.
inline const float* BiasData(const char* op, Tensor& bias, int64_t n, int32_t x_dtype) {
  if (bias.numel() == 0) return nullptr;
  const int64_t dim = bias.dim();
  if (dim != 1 || bias.sizes()[0] != n)
    Fail(op, "bias: expected shape [" + std::to_string(n) + "], got " + ShapeText(bias.sizes(), dim));
  const int32_t dtype = bias.dtype();
  if (dtype != codes.f32 && dtype != x_dtype) FailDType(op, "bias", "float32 or the dtype of x", dtype);
  if (dtype != codes.f32 || (n > 1 && bias.strides()[0] != 1)) bias = ContiguousCopy(bias, &n, 1, codes.f32);
  return static_cast<const float*>(bias.data());
}

inline void CheckResidual(const char* op, const Tensor& residual, const Tensor& y, int32_t x_dtype) {
  const int64_t dim = y.dim(), got_dim = residual.dim();
  const int64_t *expected = y.sizes(), *got = residual.sizes();
  if (got_dim != dim || !std::equal(got, got + dim, expected))
    Fail(op, "residual: expected the shape of the output, " + ShapeText(expected, dim) + ", got " +
                 ShapeText(got, got_dim));
  if (residual.dtype() != x_dtype) FailDType(op, "residual", DTypeName(x_dtype), residual.dtype());
}

// Takes the arguments from the stack and leaves the result there.
template <typename Op>
void RunLinear(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor x(stack[0]), packed(stack[1]), residual(stack[3]);
  Tensor bias(stack[2]);
  typename Op::Args args{};
  const int32_t dtype = x.dtype();
  args.dtype = DTypeOf(Op::kName, dtype);
  args.activation = static_cast<Activation>(Narrow(Op::kName, stack[5], "activation"));
  if constexpr (Op::kQuantises) {
    args.x_scale = AsFloat(stack[6]);
    args.x_zero_point = Narrow(Op::kName, stack[7], "x_zero_point");
  }

  args.packed_bytes = PackedBytes(Op::kName, packed);
  args.packed = packed.data();
  const auto weight = Op::Shape(args.packed, args.packed_bytes);
  const int64_t out_features = static_cast<int64_t>(stack[4]);
  if (out_features != weight.n)
    Fail(Op::kName,
         "out_features: the packed weight has " + std::to_string(weight.n) + ", got " + std::to_string(out_features));
  const int64_t dim = x.dim();
  const int64_t* sizes = x.sizes();
  if (dim < 1 || sizes[dim - 1] != weight.k)
    Fail(Op::kName, "x: expected shape [..., " + std::to_string(weight.k) +
                        "] (in_features of the packed weight), got " + ShapeText(sizes, dim));

  args.m = 1;
  for (int64_t i = 0; i < dim - 1; ++i) args.m *= sizes[i];
  Tensor y = Empty(sizes, dim, weight.n, dtype, x.device());
  const Rows rows(x, sizes, dim, dtype);
  args.x = rows.data;
  args.ldx = rows.stride;
  args.bias = BiasData(Op::kName, bias, weight.n, dtype);
  args.y = y.mutable_data();
  args.ldy = weight.n;
  if (residual.numel() == 0) {
    Op::Run(args, TorchExecutor());
  } else {
    CheckResidual(Op::kName, residual, y, dtype);
    const Rows residual_rows(residual, y.sizes(), dim, dtype);
    args.residual = residual_rows.data;
    args.ldr = residual_rows.stride;
    Op::Run(args, TorchExecutor());
  }
  stack[0] = y.Release();
}

// Where dispatch lands when a tensor is on another device or is not dense.
[[noreturn]] inline void RefuseElsewhere(const char* op, const Tensor* tensors, const char* const* names, int count) {
  for (int i = 0; i < count; ++i) {
    const int32_t device = tensors[i].device_type();
    const bool dense = tensors[i].layout() == aoti_torch_layout_strided();
    if (device != codes.cpu || !dense)
      Fail(op, std::string(names[i]) + ": expected a dense tensor on cpu, got a " + (dense ? "dense" : "sparse") +
                   " tensor on " + DeviceName(device));
  }
  Fail(op, "expected plain dense tensors on cpu, got a tensor subclass without a kernel for this op");
}

template <typename Op>
void RefuseLinear(StableIValue* stack, uint64_t, uint64_t) {
  const char* const names[] = {"x", "packed", "bias", "residual"};
  const Tensor tensors[] = {Tensor(stack[0]), Tensor(stack[1]), Tensor(stack[2]), Tensor(stack[3])};
  RefuseElsewhere(Op::kName, tensors, names, 4);
}

// The ops of one file. They are registered when _torch_ops.so is loaded, where an exception would end the process: on
// failure torch has printed why, the op is missing, and tersor/_native.py reports it.
class Library {
 public:
  explicit Library(const char* file) noexcept {
    if (aoti_torch_library_init_fragment("tersor", file, __LINE__, &definition_) != 0) return;
    if (aoti_torch_library_init_impl("tersor", "CPU", file, __LINE__, &cpu_) != 0) return;
    aoti_torch_library_init_impl("tersor", "CompositeExplicitAutograd", file, __LINE__, &elsewhere_);
  }
  ~Library() {
    for (TorchLibraryHandle library : {elsewhere_, cpu_, definition_})
      if (library != nullptr) aoti_torch_delete_library_object(library);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  using Boxed = void (*)(StableIValue* stack, uint64_t, uint64_t);

  template <typename Op>
  void Add(const char* schema) noexcept {
    AddBoxed(Op::kName, schema, RunLinear<Op>, RefuseLinear<Op>);
  }

  void AddBoxed(const char* name, const char* schema, Boxed run, Boxed refuse) noexcept {
    if (elsewhere_ == nullptr || aoti_torch_library_def(definition_, schema) != 0) return;
    torch_library_impl(cpu_, name, run, kTorchShimVersion);
    torch_library_impl(elsewhere_, name, refuse, kTorchShimVersion);
  }

 private:
  TorchLibraryHandle definition_ = nullptr, cpu_ = nullptr, elsewhere_ = nullptr;
};

}  // namespace tersor::shim

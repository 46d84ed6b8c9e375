// torch.ops.tersor.linear_s8 through torch's stable C shim: tensors in, one call of tersor::LinearS8, a tensor out.
// With torch_tensor.h the only place that knows torch.
#include <cstring>
#include <string>

#include "bindings/torch_shim.h"
#include "bindings/torch_tensor.h"
#include "tersor/linear_s8.h"

namespace {

using tersor::Error;
using tersor::shim::codes;
using tersor::shim::Rows;
using tersor::shim::Tensor;

constexpr char kSchema[] =
    "linear_s8(Tensor x, Tensor packed, Tensor bias, Tensor residual, int out_features, int activation, "
    "float x_scale, int x_zero_point) -> Tensor";

[[noreturn]] void Fail(const std::string& what) { throw Error("tersor::linear_s8: " + what); }

[[noreturn]] void FailDType(const char* name, const char* expected, int32_t got) {
  Fail(std::string(name) + ": expected " + expected + ", got " + tersor::shim::DTypeName(got));
}

int32_t Narrow(StableIValue value, const char* name) {
  const int64_t wide = static_cast<int64_t>(value);
  if (wide != static_cast<int32_t>(wide)) Fail(std::string(name) + "=" + std::to_string(wide) + " is out of range");
  return static_cast<int32_t>(wide);
}

float AsFloat(StableIValue value) {
  double wide;
  std::memcpy(&wide, &value, sizeof wide);
  return static_cast<float>(wide);
}

tersor::DType DTypeOf(int32_t code) {
  if (code == codes.f32) return tersor::DType::kF32;
  if (code == codes.bf16) return tersor::DType::kBf16;
  if (code == codes.f16) return tersor::DType::kF16;
  FailDType("x", "float32, bfloat16 or float16", code);
}

struct Bytes {
  const void* data;
  size_t size;
};

Bytes PackedBytes(const Tensor& packed) {
  if (packed.dtype() != codes.u8) FailDType("packed", "uint8", packed.dtype());
  const int64_t dim = packed.dim();
  if (dim != 1 || packed.strides()[0] != 1)
    Fail("packed: expected a contiguous 1-d tensor, got shape " + tersor::shim::ShapeText(packed.sizes(), dim) +
         (dim == 1 ? " with stride " + std::to_string(packed.strides()[0]) : ""));
  return {packed.data(), static_cast<size_t>(packed.sizes()[0])};
}

// Null for an empty bias. `bias` is replaced by a contiguous float32 copy where it is not one already.
const float* BiasData(Tensor& bias, int64_t n, int32_t x_dtype) {
  if (bias.numel() == 0) return nullptr;
  const int64_t dim = bias.dim();
  if (dim != 1 || bias.sizes()[0] != n)
    Fail("bias: expected shape [" + std::to_string(n) + "], got " + tersor::shim::ShapeText(bias.sizes(), dim));
  const int32_t dtype = bias.dtype();
  if (dtype != codes.f32 && dtype != x_dtype) FailDType("bias", "float32 or the dtype of x", dtype);
  if (dtype != codes.f32 || (n > 1 && bias.strides()[0] != 1)) bias = ContiguousCopy(bias, &n, 1, codes.f32);
  return static_cast<const float*>(bias.data());
}

void CheckResidual(const Tensor& residual, const Tensor& y, int32_t x_dtype) {
  const int64_t dim = y.dim(), got_dim = residual.dim();
  const int64_t *expected = y.sizes(), *got = residual.sizes();
  if (got_dim != dim || !std::equal(got, got + dim, expected))
    Fail("residual: expected the shape of the output, " + tersor::shim::ShapeText(expected, dim) + ", got " +
         tersor::shim::ShapeText(got, got_dim));
  if (residual.dtype() != x_dtype) FailDType("residual", tersor::shim::DTypeName(x_dtype).c_str(), residual.dtype());
}

// Takes the arguments of kSchema from the stack and leaves the result there.
void LinearS8(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor x(stack[0]), packed(stack[1]), residual(stack[3]);
  Tensor bias(stack[2]);
  tersor::LinearS8Args args{};
  const int32_t dtype = x.dtype();
  args.dtype = DTypeOf(dtype);
  args.activation = static_cast<tersor::Activation>(Narrow(stack[5], "activation"));
  args.x_scale = AsFloat(stack[6]);
  args.x_zero_point = Narrow(stack[7], "x_zero_point");

  const Bytes bytes = PackedBytes(packed);
  const tersor::PackedShapeS8 weight = tersor::ShapeOfPackedS8(bytes.data, bytes.size);
  args.packed = bytes.data;
  args.packed_bytes = bytes.size;
  const int64_t out_features = static_cast<int64_t>(stack[4]);
  if (out_features != weight.n)
    Fail("out_features: the packed weight has " + std::to_string(weight.n) + ", got " + std::to_string(out_features));
  const int64_t dim = x.dim();
  const int64_t* sizes = x.sizes();
  if (dim < 1 || sizes[dim - 1] != weight.k)
    Fail("x: expected shape [..., " + std::to_string(weight.k) + "] (in_features of the packed weight), got " +
         tersor::shim::ShapeText(sizes, dim));

  args.m = 1;
  for (int64_t i = 0; i < dim - 1; ++i) args.m *= sizes[i];
  Tensor y = tersor::shim::Empty(sizes, dim, weight.n, dtype);
  const Rows rows(x, sizes, dim, dtype);
  args.x = rows.data;
  args.ldx = rows.stride;
  args.bias = BiasData(bias, weight.n, dtype);
  args.y = y.mutable_data();
  args.ldy = weight.n;
  if (residual.numel() == 0) {
    tersor::LinearS8(args, tersor::shim::TorchExecutor());
  } else {
    CheckResidual(residual, y, dtype);
    const Rows residual_rows(residual, y.sizes(), dim, dtype);
    args.residual = residual_rows.data;
    args.ldr = residual_rows.stride;
    tersor::LinearS8(args, tersor::shim::TorchExecutor());
  }
  stack[0] = y.Release();
}

// Where dispatch lands when a tensor is on another device or is not dense.
void LinearS8Elsewhere(StableIValue* stack, uint64_t, uint64_t) {
  const char* const names[] = {"x", "packed", "bias", "residual"};
  const Tensor tensors[] = {Tensor(stack[0]), Tensor(stack[1]), Tensor(stack[2]), Tensor(stack[3])};
  for (int i = 0; i < 4; ++i) {
    const int32_t device = tensors[i].device_type();
    const bool dense = tensors[i].layout() == aoti_torch_layout_strided();
    if (device != codes.cpu || !dense)
      Fail(std::string(names[i]) + ": expected a dense tensor on cpu, got a " + (dense ? "dense" : "sparse") +
           " tensor on " + tersor::shim::DeviceName(device));
  }
  Fail("expected plain dense tensors on cpu, got a tensor subclass without a kernel for this op");
}

// Runs when the file is loaded, where an exception would end the process: on failure torch has printed why, the op is
// missing, and tersor/_native.py reports it.
struct Registration {
  TorchLibraryHandle definition = nullptr, cpu = nullptr, elsewhere = nullptr;

  Registration() noexcept {
    if (aoti_torch_library_init_def("tersor", kFile, __LINE__, &definition) != 0) return;
    if (aoti_torch_library_def(definition, kSchema) != 0) return;
    Implement("CPU", LinearS8, &cpu);
    Implement("CompositeExplicitAutograd", LinearS8Elsewhere, &elsewhere);
  }
  ~Registration() {
    for (TorchLibraryHandle library : {elsewhere, cpu, definition})
      if (library != nullptr) aoti_torch_delete_library_object(library);
  }

  static void Implement(const char* key, void (*fn)(StableIValue*, uint64_t, uint64_t), TorchLibraryHandle* library) {
    if (aoti_torch_library_init_impl("tersor", key, kFile, __LINE__, library) == 0)
      torch_library_impl(*library, "linear_s8", fn, kTorchShimVersion);
  }

  static constexpr char kFile[] = "tersor/_torch_ops";
} registration;

}  // namespace

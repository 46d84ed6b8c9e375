// torch.ops.tersor.linear_s8 for CUDA tensors through torch's stable C shim, on the current stream of the device of x.
//
// The packed weight is one block, made by tersor/nn/cuda_weight.py; every part starts at a multiple of 256 bytes:
//   scale f32 [n] | col_sum i32 [n] | panels (PackGemmS8) | input_scale f32 [k], in a smoothed layer
// Its extents are those of the arguments: the host cannot read a header on the device.
#include <dlfcn.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "bindings/torch_linear.h"
#include "tersor/cuda.h"
#include "tersor/cuda_device.h"
#include "tersor/linear_s8.h"

namespace {

using namespace tersor::shim;
namespace cuda = tersor::cuda;

constexpr char kOp[] = "linear_s8";

[[noreturn]] void Fail(const std::string& what) { tersor::shim::Fail(kOp, what); }

constexpr size_t Padded(int64_t bytes) { return (static_cast<size_t>(bytes) + 255) / 256 * 256; }

void CheckLaunch(int code, const char* what) {
  if (code != 0) Fail(std::string(what) + ": CUDA says '" + cuda::ErrorText(code) + "'");
}

// Makes a device current until it goes out of scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t index) { Check(aoti_torch_create_device_guard(index, &handle_), "select the device"); }
  ~DeviceGuard() { aoti_torch_delete_device_guard(handle_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  DeviceGuardHandle handle_ = nullptr;
};

// The one function that only libtorch_cuda.so has. It is in the process whenever a CUDA tensor is, and is looked up so
// that this file also loads where torch is CPU-only.
void* CurrentStream(int32_t device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
    return library == nullptr ? nullptr : reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  if (get == nullptr) Fail("torch has no CUDA streams here; install a torch with CUDA");
  void* stream = nullptr;
  Check(get(device, &stream), "tell its CUDA stream");
  return stream;
}

Tensor DeviceBytes(size_t bytes, Device device) {
  const int64_t size = static_cast<int64_t>(bytes);
  return Empty(&size, 1, size, codes.u8, device);
}

Tensor ZeroedBytes(size_t bytes, Device device, void* stream) {
  Tensor memory = DeviceBytes(bytes, device);
  CheckLaunch(cuda::Zero(memory.mutable_data(), bytes, stream), "workspace");
  return memory;
}

// Scratch that the kernels find zeroed and leave zeroed, one per stream. What was handed out once stays: a captured
// graph may hold its address. It at least doubles, so that all of a stream's together are under twice the largest.
class Workspaces {
 public:
  std::pair<void*, size_t> Get(size_t bytes, Device device, void* stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Entry* last = nullptr;
    for (Entry& entry : entries_)
      if (entry.device == device.index && entry.stream == stream) last = &entry;
    if (last == nullptr || last->bytes < bytes) {
      const size_t size = std::max(bytes, last == nullptr ? kFirst : 2 * last->bytes);
      entries_.push_back({device.index, stream, size, ZeroedBytes(size, device, stream)});
      last = &entries_.back();
    }
    return {last->memory.mutable_data(), last->bytes};
  }

 private:
  static constexpr size_t kFirst = size_t{1} << 20;
  struct Entry {
    int32_t device;
    void* stream;
    size_t bytes;
    Tensor memory;
  };
  std::mutex mutex_;
  std::vector<Entry> entries_;
};

// Never destroyed: at exit torch's allocator may be gone before it.
Workspaces& workspaces() {
  static Workspaces& all = *new Workspaces;
  return all;
}

struct Weight {
  int64_t n, k;
  const float *scale, *input_scale;
  const int32_t* col_sum;
  const void* panels;
};

Weight WeightOf(const Tensor& packed, int64_t n, int64_t k) {
  const size_t bytes = PackedBytes(kOp, packed);
  if (n <= 0 || k <= 0 || k > tersor::kMaxDepthS8)
    Fail("the CUDA kernels take in_features from 1 to " + std::to_string(tersor::kMaxDepthS8) +
         " and at least one output, got in_features=" + std::to_string(k) + ", out_features=" + std::to_string(n));
  const size_t col_sum_at = Padded(n * 4), panels_at = col_sum_at + Padded(n * 4);
  const size_t input_scale_at = panels_at + Padded(cuda::PackedBytesGemmS8(n, k)), plain = input_scale_at;
  const size_t smoothed = plain + Padded(k * 4);
  if (bytes != plain && bytes != smoothed)
    Fail("packed: a CUDA weight of out_features=" + std::to_string(n) + " and in_features=" + std::to_string(k) +
         " has " + std::to_string(plain) + " or, smoothed, " + std::to_string(smoothed) + " bytes, got " +
         std::to_string(bytes) + "; pack the weight for this device");
  if (reinterpret_cast<uintptr_t>(packed.data()) % 16 != 0) Fail("packed: its address is not a multiple of 16");
  const char* base = static_cast<const char*>(packed.data());
  Weight weight{n,
                k,
                reinterpret_cast<const float*>(base),
                nullptr,
                reinterpret_cast<const int32_t*>(base + col_sum_at),
                base + panels_at};
  if (bytes == smoothed) weight.input_scale = reinterpret_cast<const float*>(base + input_scale_at);
  return weight;
}

void CheckPlace(const Tensor& tensor, const char* name, Device expected) {
  const Device device = tensor.device();
  if (device == expected || tensor.numel() == 0) return;
  Fail(std::string(name) + ": expected a tensor on " + DeviceName(expected.type) + ":" +
       std::to_string(expected.index) + ", where x is, got one on " + DeviceName(device.type) + ":" +
       std::to_string(device.index));
}

void CheckSettings(tersor::Activation activation, float x_scale, int32_t x_zero_point) {
  const int32_t code = static_cast<int32_t>(activation);
  if (code < 0 || code >= tersor::kActivationCount)
    Fail("unknown activation code " + std::to_string(code) + "; codes are 0 to " +
         std::to_string(tersor::kActivationCount - 1));
  if (!(x_scale == 0.0f || (x_scale >= 1.17549435e-38f && x_scale <= 3.402823466e38f)))
    Fail("x_scale=" + std::to_string(x_scale) + "; expected 0 or a positive normal number");
  if (x_zero_point < 0 || x_zero_point > 255)
    Fail("x_zero_point=" + std::to_string(x_zero_point) + " is outside [0, 255]");
}

// Quantises the rows, multiplies, finishes: two kernels.
void Run(cuda::QuantizeRowsArgs quantize, const Weight& weight, cuda::Epilogue epilogue, Device device) {
  void* stream = CurrentStream(device.index);
  const int64_t m = quantize.m, ldq = cuda::PadDepthS8(weight.k);
  const size_t scale_at = Padded(m * ldq), zero_at = scale_at + Padded(m * 4);
  const Tensor scratch = DeviceBytes(zero_at + Padded(m * 4), device);
  char* base = static_cast<char*>(scratch.mutable_data());
  quantize.q = reinterpret_cast<uint8_t*>(base);
  quantize.ldq = ldq;
  quantize.scale = reinterpret_cast<float*>(base + scale_at);
  quantize.zero_point = reinterpret_cast<int32_t*>(base + zero_at);
  CheckLaunch(cuda::QuantizeRows(quantize, stream), "quantising the rows of x");

  epilogue.row_scale = quantize.scale;
  epilogue.row_zero = quantize.zero_point;
  cuda::GemmS8Args gemm{};
  gemm.m = m;
  gemm.n = weight.n;
  gemm.k = weight.k;
  gemm.a = quantize.q;
  gemm.lda = ldq;
  gemm.packed = weight.panels;
  gemm.epilogue = epilogue;
  gemm.tile = -1;
  const size_t needed = static_cast<size_t>(cuda::GemmS8WorkspaceBytes(m, weight.n, weight.k));
  Tensor captured;
  if (needed > 0 && cuda::IsCapturing(stream)) {
    captured = ZeroedBytes(needed, device, stream);
    gemm.workspace = captured.mutable_data();
    gemm.workspace_bytes = static_cast<int64_t>(needed);
  } else if (needed > 0) {
    const auto [workspace, bytes] = workspaces().Get(needed, device, stream);
    gemm.workspace = workspace;
    gemm.workspace_bytes = static_cast<int64_t>(bytes);
  }
  CheckLaunch(cuda::GemmS8(gemm, stream), "multiplying");
}

// Takes the arguments of the schema in torch_ops.cc from the stack and leaves the result there.
void LinearS8(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor x(stack[0]), packed(stack[1]), residual(stack[3]);
  Tensor bias(stack[2]);
  const Device device = x.device();
  if (device.type != codes.cuda)
    Fail("x: expected a tensor on cuda like the others, got one on " + DeviceName(device.type));
  CheckPlace(packed, "packed", device);
  CheckPlace(bias, "bias", device);
  CheckPlace(residual, "residual", device);

  cuda::Epilogue epilogue{};
  const int32_t dtype = x.dtype();
  epilogue.dtype = DTypeOf(kOp, dtype);
  epilogue.activation = static_cast<tersor::Activation>(Narrow(kOp, stack[5], "activation"));
  cuda::QuantizeRowsArgs quantize{};
  quantize.x_scale = AsFloat(stack[6]);
  quantize.x_zero_point = Narrow(kOp, stack[7], "x_zero_point");
  CheckSettings(epilogue.activation, quantize.x_scale, quantize.x_zero_point);

  const DeviceGuard guard(device.index);
  const int64_t dim = x.dim();
  const int64_t* sizes = x.sizes();
  if (dim < 1) Fail("x: expected shape [..., in_features], got []");
  const Weight weight = WeightOf(packed, static_cast<int64_t>(stack[4]), sizes[dim - 1]);
  quantize.m = 1;
  for (int64_t i = 0; i < dim - 1; ++i) quantize.m *= sizes[i];
  quantize.k = weight.k;
  quantize.dtype = epilogue.dtype;
  quantize.input_scale = weight.input_scale;
  epilogue.col_scale = weight.scale;
  epilogue.col_sum = weight.col_sum;
  Tensor y = Empty(sizes, dim, weight.n, dtype, device);
  epilogue.y = y.mutable_data();
  epilogue.ldy = weight.n;
  const Rows rows(x, sizes, dim, dtype);
  quantize.x = rows.data;
  quantize.ldx = rows.stride;
  epilogue.bias = BiasData(kOp, bias, weight.n, dtype);
  if (residual.numel() == 0) {
    if (quantize.m > 0) Run(quantize, weight, epilogue, device);
  } else {
    CheckResidual(kOp, residual, y, dtype);
    const Rows residual_rows(residual, y.sizes(), dim, dtype);
    epilogue.residual = residual_rows.data;
    epilogue.ldr = residual_rows.stride;
    Run(quantize, weight, epilogue, device);
  }
  stack[0] = y.Release();
}

// As in torch_ops.cc, which defines the op and is loaded first.
struct Registration {
  TorchLibraryHandle library = nullptr;

  Registration() noexcept {
    if (aoti_torch_library_init_impl("tersor", "CUDA", "tersor/_torch_ops_cuda", __LINE__, &library) == 0)
      torch_library_impl(library, "linear_s8", LinearS8, kTorchShimVersion);
  }
  ~Registration() {
    if (library != nullptr) aoti_torch_delete_library_object(library);
  }
} registration;

}  // namespace

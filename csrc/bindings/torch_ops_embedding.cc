// torch.ops.tersor.embedding_s8 and embedding_bag_s8 through torch's stable C shim.
#include "bindings/torch_linear.h"
#include "tersor/embedding_s8.h"

namespace {

using namespace tersor::shim;

constexpr char kGather[] = "embedding_s8", kBag[] = "embedding_bag_s8";

const int64_t* Integers(const char* op, const Tensor& tensor, const char* name) {
  const int64_t dim = tensor.dim();
  if (tensor.dtype() != aoti_torch_dtype_int64()) FailDType(op, name, "int64", tensor.dtype());
  if (dim != 1 || (tensor.numel() > 1 && tensor.strides()[0] != 1))
    Fail(op, std::string(name) + ": expected a contiguous 1-d tensor, got shape " + ShapeText(tensor.sizes(), dim));
  return static_cast<const int64_t*>(tensor.data());
}

Tensor Rows2d(int64_t rows, int64_t dim, Device device) {
  const int64_t sizes[] = {rows, dim};
  return Empty(sizes, 2, dim, codes.f32, device);
}

void CheckDim(const char* op, const Tensor& packed, int64_t dim) {
  const int64_t own = tersor::SpecOfEmbedding(packed.data(), PackedBytes(op, packed)).dim;
  if (own != dim) Fail(op, "dim: the packed embedding has " + std::to_string(own) + ", got " + std::to_string(dim));
}

void RunGather(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor indices(stack[0]), packed(stack[1]);
  const int64_t dim = static_cast<int64_t>(stack[2]), count = indices.numel();
  const int64_t* rows = Integers(kGather, indices, "indices");
  CheckDim(kGather, packed, dim);
  Tensor y = Rows2d(count, dim, packed.device());
  tersor::EmbeddingS8(packed.data(), PackedBytes(kGather, packed), count, rows, static_cast<float*>(y.mutable_data()),
                      TorchExecutor());
  stack[0] = y.Release();
}

void RunBag(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor indices(stack[0]), packed(stack[1]), offsets(stack[2]);
  Tensor weights(stack[3]);
  const int64_t dim = static_cast<int64_t>(stack[4]);
  tersor::EmbeddingBagArgs args{};
  args.indices = Integers(kBag, indices, "indices");
  args.offsets = Integers(kBag, offsets, "offsets");
  args.count = indices.numel();
  args.bags = offsets.numel() - 1;
  if (args.bags < 0) Fail(kBag, "offsets: expected at least one");
  CheckDim(kBag, packed, dim);
  args.packed = packed.data();
  args.packed_bytes = PackedBytes(kBag, packed);
  args.weights = BiasData(kBag, weights, args.count, codes.f32);
  args.mode = static_cast<tersor::BagMode>(Narrow(kBag, stack[5], "mode"));
  args.padding = static_cast<int64_t>(stack[6]);
  Tensor y = Rows2d(args.bags, dim, packed.device());
  args.y = static_cast<float*>(y.mutable_data());
  tersor::EmbeddingBagS8(args, TorchExecutor());
  stack[0] = y.Release();
}

void RefuseGather(StableIValue* stack, uint64_t, uint64_t) {
  const char* const names[] = {"indices", "packed"};
  const Tensor tensors[] = {Tensor(stack[0]), Tensor(stack[1])};
  RefuseElsewhere(kGather, tensors, names, 2);
}

void RefuseBag(StableIValue* stack, uint64_t, uint64_t) {
  const char* const names[] = {"indices", "packed", "offsets", "weights"};
  const Tensor tensors[] = {Tensor(stack[0]), Tensor(stack[1]), Tensor(stack[2]), Tensor(stack[3])};
  RefuseElsewhere(kBag, tensors, names, 4);
}

struct Registration : Library {
  Registration() noexcept : Library("tersor/torch_ops_embedding") {
    AddBoxed(kGather, "embedding_s8(Tensor indices, Tensor packed, int dim) -> Tensor", RunGather, RefuseGather);
    AddBoxed(kBag,
             "embedding_bag_s8(Tensor indices, Tensor packed, Tensor offsets, Tensor weights, int dim, int mode, "
             "int padding) -> Tensor",
             RunBag, RefuseBag);
  }
} registration;

}  // namespace

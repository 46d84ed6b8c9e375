// torch.ops.tersor.encoder_block through torch's stable C shim.
#include "bindings/torch_linear.h"
#include "tersor/encoder_block.h"

namespace {

using namespace tersor::shim;
using tersor::EncoderBlockArgs;
using tersor::EncoderBlockConfig;

struct EncoderBlockOp {
  static constexpr char kName[] = "encoder_block";
};
constexpr const char* kOp = EncoderBlockOp::kName;

// Null for an empty tensor; else contiguous memory of the expected shape.
const void* Optional(Tensor& tensor, const char* name, const int64_t* sizes, int64_t dim, int32_t dtype) {
  if (tensor.numel() == 0) return nullptr;
  const int64_t got_dim = tensor.dim();
  if (got_dim != dim || !std::equal(sizes, sizes + dim, tensor.sizes()))
    Fail(kOp, std::string(name) + ": expected shape " + ShapeText(sizes, dim) + ", got " +
                  ShapeText(tensor.sizes(), got_dim));
  if (tersor::RowStride(sizes, tensor.strides(), dim) != sizes[dim - 1])
    tensor = ContiguousCopy(tensor, sizes, dim, dtype);
  return tensor.data();
}

void Run(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor x(stack[0]), packed(stack[3]);
  Tensor keep(stack[1]), score_bias(stack[2]);
  EncoderBlockArgs args{};
  const int32_t dtype = x.dtype();
  args.dtype = DTypeOf(kOp, dtype);
  args.packed_bytes = PackedBytes(kOp, packed);
  args.packed = packed.data();
  const EncoderBlockConfig c = tersor::ConfigOfEncoderBlock(args.packed, args.packed_bytes);
  const int64_t dim = x.dim();
  const int64_t* sizes = x.sizes();
  if (dim != 3 || sizes[2] != c.hidden)
    Fail(kOp, "x: expected shape [batch, tokens, " + std::to_string(c.hidden) + "], got " + ShapeText(sizes, dim));
  args.batch = sizes[0];
  args.tokens = sizes[1];
  const int32_t keep_dtype = keep.dtype();
  if (keep.numel() != 0 && keep_dtype != codes.u8 && keep_dtype != aoti_torch_dtype_bool())
    FailDType(kOp, "keep", "uint8 or bool", keep_dtype);
  if (score_bias.numel() != 0 && score_bias.dtype() != codes.f32)
    FailDType(kOp, "score_bias", "float32", score_bias.dtype());
  const int64_t keep_sizes[] = {args.batch, args.tokens}, bias_sizes[] = {c.heads, args.tokens, args.tokens};
  args.keep = static_cast<const uint8_t*>(Optional(keep, "keep", keep_sizes, 2, keep_dtype));
  args.score_bias = static_cast<const float*>(Optional(score_bias, "score_bias", bias_sizes, 3, codes.f32));

  Tensor y = Empty(sizes, dim, c.hidden, dtype, x.device());
  const Rows rows(x, sizes, dim, dtype);
  args.x = rows.data;
  args.ldx = args.batch * args.tokens > 1 ? rows.stride : c.hidden;
  args.y = y.mutable_data();
  args.ldy = c.hidden;
  if (args.ldx < c.hidden) {  // an expanded x: one row stands for many
    const Tensor copy = ContiguousCopy(x, sizes, dim, dtype);
    args.x = copy.data();
    args.ldx = c.hidden;
    tersor::EncoderBlock(args, TorchExecutor());
  } else {
    tersor::EncoderBlock(args, TorchExecutor());
  }
  stack[0] = y.Release();
}

void Refuse(StableIValue* stack, uint64_t, uint64_t) {
  const char* const names[] = {"x", "keep", "score_bias", "packed"};
  const Tensor tensors[] = {Tensor(stack[0]), Tensor(stack[1]), Tensor(stack[2]), Tensor(stack[3])};
  RefuseElsewhere(kOp, tensors, names, 4);
}

struct Registration : Library {
  Registration() noexcept : Library("tersor/torch_ops_encoder") {
    AddBoxed(kOp, "encoder_block(Tensor x, Tensor keep, Tensor score_bias, Tensor packed) -> Tensor", Run, Refuse);
  }
} registration;

}  // namespace

// torch.ops.tersor.recurrent_s8, one direction of a GRU or LSTM, through torch's stable C shim.
#include "bindings/torch_linear.h"
#include "tersor/recurrent_s8.h"

namespace {

using namespace tersor::shim;

constexpr char kName[] = "recurrent_s8";

// A float32 [rows, columns] tensor that may be written: a copy.
Tensor StateOf(const Tensor& given, const char* name, int64_t rows, int64_t columns) {
  const int64_t dim = given.dim();
  const int64_t* got = given.sizes();
  if (dim != 2 || got[0] != rows || got[1] != columns)
    Fail(kName, std::string(name) + ": expected shape [" + std::to_string(rows) + ", " + std::to_string(columns) +
                    "], got " + ShapeText(got, dim));
  if (given.dtype() != codes.f32) FailDType(kName, name, "float32", given.dtype());
  return ContiguousCopy(given, got, dim, codes.f32);
}

void Run(StableIValue* stack, uint64_t, uint64_t) {
  const Tensor x(stack[0]), packed(stack[1]), sizes(stack[3]), state(stack[4]), cell(stack[5]);
  const int64_t offset = static_cast<int64_t>(stack[2]);
  tersor::RecurrentArgs args{};
  args.reverse = stack[6] != 0;
  const size_t bytes = PackedBytes(kName, packed);
  if (offset < 0 || static_cast<size_t>(offset) > bytes) Fail(kName, "offset is outside of packed");
  args.packed = static_cast<const char*>(packed.data()) + offset;
  args.packed_bytes = bytes - static_cast<size_t>(offset);
  const tersor::RecurrentSpec spec = tersor::InspectPackedRecurrent(args.packed, args.packed_bytes).spec;
  if (sizes.dim() != 1 || sizes.dtype() != aoti_torch_dtype_int64() || (sizes.numel() > 1 && sizes.strides()[0] != 1))
    Fail(kName, "batch_sizes: expected a contiguous 1-d int64 tensor");
  const int64_t dim = x.dim();
  if (dim != 2 || x.sizes()[1] != spec.input)
    Fail(kName, "x: expected shape [rows, " + std::to_string(spec.input) + "], got " + ShapeText(x.sizes(), dim));
  if (x.dtype() != codes.f32) FailDType(kName, "x", "float32", x.dtype());
  const Rows rows(x, x.sizes(), dim, codes.f32);
  args.x = static_cast<const float*>(rows.data);
  args.ldx = rows.stride;
  args.rows = x.sizes()[0];
  args.steps = sizes.numel();
  args.batch_sizes = static_cast<const int64_t*>(sizes.data());
  args.batch = state.dim() == 2 ? state.sizes()[0] : 0;
  Tensor last = StateOf(state, "state", args.batch, spec.hidden);
  const int64_t none[1] = {0};
  const bool lstm = spec.cell == tersor::Cell::kLstm;
  Tensor last_cell = lstm ? StateOf(cell, "cell", args.batch, spec.hidden) : Empty(none, 1, 0, codes.f32, x.device());
  Tensor y = Empty(x.sizes(), dim, spec.hidden, codes.f32, x.device());
  args.y = static_cast<float*>(y.mutable_data());
  args.state = static_cast<float*>(last.mutable_data());
  if (lstm) args.cell = static_cast<float*>(last_cell.mutable_data());
  tersor::RecurrentS8(args, TorchExecutor());
  stack[0] = y.Release();
  stack[1] = last.Release();
  stack[2] = last_cell.Release();
}

void Refuse(StableIValue* stack, uint64_t, uint64_t) {
  const char* const names[] = {"x", "packed", "batch_sizes", "state", "cell"};
  const Tensor tensors[] = {Tensor(stack[0]), Tensor(stack[1]), Tensor(stack[3]), Tensor(stack[4]), Tensor(stack[5])};
  RefuseElsewhere(kName, tensors, names, 5);
}

struct Registration : Library {
  Registration() noexcept : Library("tersor/torch_ops_recurrent") {
    AddBoxed(kName,
             "recurrent_s8(Tensor x, Tensor packed, int offset, Tensor batch_sizes, Tensor state, Tensor cell, "
             "int reverse) -> (Tensor, Tensor, Tensor)",
             Run, Refuse);
  }
} registration;

}  // namespace

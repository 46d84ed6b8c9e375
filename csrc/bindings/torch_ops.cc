// torch.ops.tersor.linear_s8 through torch's stable C shim.
#include "bindings/torch_linear.h"
#include "tersor/linear_s8.h"

namespace {

struct LinearS8Op {
  static constexpr char kName[] = "linear_s8";
  using Args = tersor::LinearS8Args;

  static tersor::PackedShapeS8 Shape(const void* packed, size_t bytes) {
    return tersor::ShapeOfPackedS8(packed, bytes);
  }
  static void TakeSettings(const StableIValue* stack, Args& args) {
    args.x_scale = tersor::shim::AsFloat(stack[6]);
    args.x_zero_point = tersor::shim::Narrow(kName, stack[7], "x_zero_point");
  }
  static void Run(const Args& args, const tersor::Executor& executor) { tersor::LinearS8(args, executor); }
};

struct Registration : tersor::shim::Library {
  Registration() noexcept : Library("tersor/torch_ops") {
    Add<LinearS8Op>(
        "linear_s8(Tensor x, Tensor packed, Tensor bias, Tensor residual, int out_features, int activation, "
        "float x_scale, int x_zero_point) -> Tensor");
  }
} registration;

}  // namespace

// torch.ops.tersor.linear_lut4, the op with code book weights, through torch's stable C shim.
#include "bindings/torch_linear.h"
#include "tersor/linear_lut4.h"

namespace {

struct LinearLut4Op {
  static constexpr char kName[] = "linear_lut4";
  using Args = tersor::LinearS8Args;

  static tersor::PackedInfoLut4 Shape(const void* packed, size_t bytes) {
    return tersor::InspectPackedLut4(packed, bytes);
  }
  static void TakeSettings(const StableIValue* stack, Args& args) {
    args.x_scale = tersor::shim::AsFloat(stack[6]);
    args.x_zero_point = tersor::shim::Narrow(kName, stack[7], "x_zero_point");
  }
  static void Run(const Args& args, const tersor::Executor& executor) { tersor::LinearLut4(args, executor); }
};

struct Registration : tersor::shim::Library {
  Registration() noexcept : Library("tersor/torch_ops_lut4") {
    Add<LinearLut4Op>(
        "linear_lut4(Tensor x, Tensor packed, Tensor bias, Tensor residual, int out_features, int activation, "
        "float x_scale, int x_zero_point) -> Tensor");
  }
} registration;

}  // namespace

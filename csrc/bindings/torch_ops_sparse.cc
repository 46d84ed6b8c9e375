// torch.ops.tersor.spmm_s8 and spmm_f32, the ops with sparse weights, through torch's stable C shim.
#include "bindings/torch_linear.h"
#include "tersor/spmm_f32.h"
#include "tersor/spmm_s8.h"

namespace {

struct SpmmS8Op {
  static constexpr char kName[] = "spmm_s8";
  using Args = tersor::LinearS8Args;

  static tersor::PackedInfoSpmmS8 Shape(const void* packed, size_t bytes) {
    return tersor::InspectPackedSpmmS8(packed, bytes);
  }
  static void TakeSettings(const StableIValue* stack, Args& args) {
    args.x_scale = tersor::shim::AsFloat(stack[6]);
    args.x_zero_point = tersor::shim::Narrow(kName, stack[7], "x_zero_point");
  }
  static void Run(const Args& args, const tersor::Executor& executor) { tersor::SpmmS8(args, executor); }
};

struct SpmmF32Op {
  static constexpr char kName[] = "spmm_f32";
  using Args = tersor::SpmmF32Args;

  static tersor::PackedInfoSpmmF32 Shape(const void* packed, size_t bytes) {
    return tersor::InspectPackedSpmmF32(packed, bytes);
  }
  static void TakeSettings(const StableIValue*, Args&) {}
  static void Run(const Args& args, const tersor::Executor& executor) { tersor::SpmmF32(args, executor); }
};

struct Registration : tersor::shim::Library {
  Registration() noexcept : Library("tersor/torch_ops_sparse") {
    Add<SpmmS8Op>(
        "spmm_s8(Tensor x, Tensor packed, Tensor bias, Tensor residual, int out_features, int activation, "
        "float x_scale, int x_zero_point) -> Tensor");
    Add<SpmmF32Op>(
        "spmm_f32(Tensor x, Tensor packed, Tensor bias, Tensor residual, int out_features, int activation) -> Tensor");
  }
} registration;

}  // namespace

// torch.ops.tersor.lowrank_f32 and lowrank_s8, the ops with factored weights, through torch's stable C shim.
#include "bindings/torch_linear.h"
#include "tersor/lowrank.h"

namespace {

struct LowRankF32Op {
  static constexpr char kName[] = "lowrank_f32";
  using Args = tersor::LowRankF32Args;

  static tersor::PackedInfoLowRank Shape(const void* packed, size_t bytes) {
    return tersor::InspectPackedLowRankF32(packed, bytes);
  }
  static void TakeSettings(const StableIValue*, Args&) {}
  static void Run(const Args& args, const tersor::Executor& executor) { tersor::LowRankF32(args, executor); }
};

struct LowRankS8Op {
  static constexpr char kName[] = "lowrank_s8";
  using Args = tersor::LinearS8Args;

  static tersor::PackedInfoLowRank Shape(const void* packed, size_t bytes) {
    return tersor::InspectPackedLowRankS8(packed, bytes);
  }
  static void TakeSettings(const StableIValue* stack, Args& args) {
    args.x_scale = tersor::shim::AsFloat(stack[6]);
    args.x_zero_point = tersor::shim::Narrow(kName, stack[7], "x_zero_point");
  }
  static void Run(const Args& args, const tersor::Executor& executor) { tersor::LowRankS8(args, executor); }
};

struct Registration : tersor::shim::Library {
  Registration() noexcept : Library("tersor/torch_ops_lowrank") {
    Add<LowRankF32Op>(
        "lowrank_f32(Tensor x, Tensor packed, Tensor bias, Tensor residual, int out_features, int activation) -> "
        "Tensor");
    Add<LowRankS8Op>(
        "lowrank_s8(Tensor x, Tensor packed, Tensor bias, Tensor residual, int out_features, int activation, "
        "float x_scale, int x_zero_point) -> Tensor");
  }
} registration;

}  // namespace

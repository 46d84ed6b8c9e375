// torch.ops.tersor.lowrank_f32 and lowrank_s8, the ops with factored weights, through torch's stable C shim.
#include "bindings/linear_ops.h"
#include "bindings/torch_linear.h"

namespace {

struct Registration : tersor::shim::Library {
  Registration() noexcept : Library("tersor/torch_ops_lowrank") {
    Add<tersor::LowRankF32Op>(
        "lowrank_f32(Tensor x, Tensor packed, Tensor bias, Tensor residual, int out_features, int activation) -> "
        "Tensor");
    Add<tersor::LowRankS8Op>(
        "lowrank_s8(Tensor x, Tensor packed, Tensor bias, Tensor residual, int out_features, int activation, "
        "float x_scale, int x_zero_point) -> Tensor");
  }
} registration;

}  // namespace

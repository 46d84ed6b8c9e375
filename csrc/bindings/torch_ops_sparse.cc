// torch.ops.tersor.spmm_s8 and spmm_f32, the ops with sparse weights, through torch's stable C shim.
#include "bindings/linear_ops.h"
#include "bindings/torch_linear.h"

namespace {

struct Registration : tersor::shim::Library {
  Registration() noexcept : Library("tersor/torch_ops_sparse") {
    Add<tersor::SpmmS8Op>(
        "spmm_s8(Tensor x, Tensor packed, Tensor bias, Tensor residual, int out_features, int activation, "
        "float x_scale, int x_zero_point) -> Tensor");
    Add<tersor::SpmmF32Op>(
        "spmm_f32(Tensor x, Tensor packed, Tensor bias, Tensor residual, int out_features, int activation) -> Tensor");
  }
} registration;

}  // namespace

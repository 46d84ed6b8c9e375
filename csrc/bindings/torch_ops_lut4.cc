// torch.ops.tersor.linear_lut4, the op with code book weights, through torch's stable C shim.
#include "bindings/linear_ops.h"
#include "bindings/torch_linear.h"

namespace {

struct Registration : tersor::shim::Library {
  Registration() noexcept : Library("tersor/torch_ops_lut4") {
    Add<tersor::LinearLut4Op>(
        "linear_lut4(Tensor x, Tensor packed, Tensor bias, Tensor residual, int out_features, int activation, "
        "float x_scale, int x_zero_point) -> Tensor");
  }
} registration;

}  // namespace

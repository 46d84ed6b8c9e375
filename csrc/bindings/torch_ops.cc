// torch.ops.tersor.linear_s8 through torch's stable C shim.
#include "bindings/linear_ops.h"
#include "bindings/torch_linear.h"

namespace {

struct Registration : tersor::shim::Library {
  Registration() noexcept : Library("tersor/torch_ops") {
    Add<tersor::LinearS8Op>(
        "linear_s8(Tensor x, Tensor packed, Tensor bias, Tensor residual, int out_features, int activation, "
        "float x_scale, int x_zero_point) -> Tensor");
    tersor::SetHostExecutor(tersor::shim::TorchExecutor);
  }
} registration;

}  // namespace

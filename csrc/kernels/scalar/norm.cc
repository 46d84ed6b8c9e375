#include "kernels/norm_math.h"
#include "kernels/scalar/sums.h"

namespace tersor::scalar {

const NormKernel& Norm() {
  static constexpr NormKernel kernel = ::Norm<LaneSums>::Kernel("norm_scalar");
  return kernel;
}

}  // namespace tersor::scalar

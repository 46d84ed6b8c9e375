#include "kernels/neon_dotprod/attention_lanes.h"
#include "kernels/norm_math.h"

namespace tersor::neon_dotprod {

const NormKernel& Norm() {
  static constexpr NormKernel kernel = ::Norm<Pairs4>::Kernel("norm_neon_dotprod");
  return kernel;
}

}  // namespace tersor::neon_dotprod

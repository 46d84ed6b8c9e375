#include "kernels/activation_math.h"
#include "kernels/neon_dotprod/lanes.h"

namespace tersor::neon_dotprod {

const ActivationKernel& Activation() {
  static constexpr ActivationKernel kernel = {"activation_neon_dotprod", ApplyActivation<Lanes4>};
  return kernel;
}

const ActivationKernel& ActivationNear() {
  static constexpr ActivationKernel kernel = {"activation_near_neon_dotprod", ApplyNear<Lanes4>};
  return kernel;
}

}  // namespace tersor::neon_dotprod

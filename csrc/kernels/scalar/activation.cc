#include "kernels/activation_math.h"
#include "kernels/scalar/lanes.h"

namespace tersor::scalar {

const ActivationKernel& Activation() {
  static constexpr ActivationKernel kernel = {"activation_scalar", ApplyActivation<Lane>};
  return kernel;
}

const ActivationKernel& ActivationNear() {
  static constexpr ActivationKernel kernel = {"activation_near_scalar", ApplyNear<Lane>};
  return kernel;
}

}  // namespace tersor::scalar

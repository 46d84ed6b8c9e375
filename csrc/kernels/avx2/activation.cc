#include "kernels/activation_math.h"
#include "kernels/avx2/lanes.h"

namespace tersor::avx2 {

const ActivationKernel& Activation() {
  static constexpr ActivationKernel kernel = {"activation_avx2", ApplyActivation<Lanes8>};
  return kernel;
}

const ActivationKernel& ActivationNear() {
  static constexpr ActivationKernel kernel = {"activation_near_avx2", ApplyNear<Lanes8>};
  return kernel;
}

}  // namespace tersor::avx2

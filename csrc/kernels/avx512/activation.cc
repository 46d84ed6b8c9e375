#include "kernels/activation_math.h"
#include "kernels/avx512/lanes.h"

namespace tersor::avx512 {

const ActivationKernel& Activation() {
  static constexpr ActivationKernel kernel = {"activation_avx512", ApplyActivation<Lanes16>};
  return kernel;
}

const ActivationKernel& ActivationNear() {
  static constexpr ActivationKernel kernel = {"activation_near_avx512", ApplyNear<Lanes16>};
  return kernel;
}

}  // namespace tersor::avx512

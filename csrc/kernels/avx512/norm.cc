#include "kernels/avx512/attention_lanes.h"
#include "kernels/norm_math.h"

namespace tersor::avx512 {

const NormKernel& Norm() {
  static constexpr NormKernel kernel = ::Norm<Pairs16>::Kernel("norm_avx512");
  return kernel;
}

}  // namespace tersor::avx512

#include "kernels/avx2/attention_lanes.h"
#include "kernels/norm_math.h"

namespace tersor::avx2 {

const NormKernel& Norm() {
  static constexpr NormKernel kernel = ::Norm<Pairs8>::Kernel("norm_avx2");
  return kernel;
}

}  // namespace tersor::avx2

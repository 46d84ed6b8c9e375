#include "kernels/avx512/lanes.h"
#include "kernels/recurrent_math.h"

namespace tersor::avx512 {

const RecurrentKernel& RecurrentCells() {
  static constexpr RecurrentKernel kernel = ::Recurrent<Lanes16>::Kernel("recurrent_avx512");
  return kernel;
}

}  // namespace tersor::avx512

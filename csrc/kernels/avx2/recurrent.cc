#include "kernels/avx2/lanes.h"
#include "kernels/recurrent_math.h"

namespace tersor::avx2 {

const RecurrentKernel& RecurrentCells() {
  static constexpr RecurrentKernel kernel = ::Recurrent<Lanes8>::Kernel("recurrent_avx2");
  return kernel;
}

}  // namespace tersor::avx2

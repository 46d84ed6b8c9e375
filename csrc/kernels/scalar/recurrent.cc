#include "kernels/recurrent_math.h"
#include "kernels/scalar/lanes.h"

namespace tersor::scalar {

const RecurrentKernel& RecurrentCells() {
  static constexpr RecurrentKernel kernel = ::Recurrent<Lane>::Kernel("recurrent_scalar");
  return kernel;
}

}  // namespace tersor::scalar

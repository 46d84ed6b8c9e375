#include "kernels/neon_dotprod/lanes.h"
#include "kernels/recurrent_math.h"

namespace tersor::neon_dotprod {

const RecurrentKernel& RecurrentCells() {
  static constexpr RecurrentKernel kernel = ::Recurrent<Lanes4>::Kernel("recurrent_neon_dotprod");
  return kernel;
}

}  // namespace tersor::neon_dotprod

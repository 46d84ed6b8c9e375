#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::neon_dotprod {
namespace {

#include "kernels/conv_s8_loops.h"

}  // namespace

const ConvS8Kernel& ConvS8() {
  static constexpr ConvS8Kernel kernel = {"conv_s8_neon_dotprod", FinishLoops, MaxRow, SumRow};
  return kernel;
}

}  // namespace tersor::neon_dotprod

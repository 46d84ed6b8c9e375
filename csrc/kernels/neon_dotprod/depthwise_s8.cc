#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::neon_dotprod {
namespace {

#include "kernels/depthwise_s8_loops.h"

}  // namespace

const DepthwiseS8Kernel& DepthwiseS8() {
  static constexpr DepthwiseS8Kernel kernel = {
      "depthwise_s8_neon_dotprod", DepthwiseBytes, PackDepthwise, UnpackDepthwise, DepthwiseRow, nullptr};
  return kernel;
}

}  // namespace tersor::neon_dotprod

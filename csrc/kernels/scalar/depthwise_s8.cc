#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::scalar {
namespace {

#include "kernels/depthwise_s8_loops.h"

}  // namespace

const DepthwiseS8Kernel& DepthwiseS8() {
  static constexpr DepthwiseS8Kernel kernel = {"depthwise_s8_scalar", DepthwiseBytes, PackDepthwise,
                                               UnpackDepthwise,       DepthwiseRow,   nullptr};
  return kernel;
}

}  // namespace tersor::scalar

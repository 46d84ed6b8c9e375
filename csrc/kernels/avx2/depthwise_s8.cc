#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::avx2 {
namespace {

#include "kernels/depthwise_s8_loops.h"

}  // namespace

const DepthwiseS8Kernel& DepthwiseS8() {
  static constexpr DepthwiseS8Kernel kernel = {"depthwise_s8_avx2", DepthwiseBytes, PackDepthwise,
                                               UnpackDepthwise,     DepthwiseRow,   nullptr};
  return kernel;
}

}  // namespace tersor::avx2

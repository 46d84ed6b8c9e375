#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::avx512 {
namespace {

#include "kernels/depthwise_s8_loops.h"

}  // namespace

const DepthwiseS8Kernel& DepthwiseS8() {
  static constexpr DepthwiseS8Kernel kernel = {"depthwise_s8_avx512", DepthwiseBytes, PackDepthwise,
                                               UnpackDepthwise,       DepthwiseRow,   nullptr};
  return kernel;
}

}  // namespace tersor::avx512

#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::scalar {
namespace {

#include "kernels/conv_s8_loops.h"

}  // namespace

const ConvS8Kernel& ConvS8() {
  static constexpr ConvS8Kernel kernel = {"conv_s8_scalar", FinishLoops, MaxRow, SumRow};
  return kernel;
}

}  // namespace tersor::scalar

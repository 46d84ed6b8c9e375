#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::avx2 {
namespace {

#include "kernels/conv_s8_loops.h"

}  // namespace

const ConvS8Kernel& ConvS8() {
  static constexpr ConvS8Kernel kernel = {"conv_s8_avx2", FinishLoops, MaxRow, SumRow};
  return kernel;
}

}  // namespace tersor::avx2

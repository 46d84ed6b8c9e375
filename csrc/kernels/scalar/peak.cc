// The ceiling: one multiplication and one addition at a time, four independent sums.
#include "kernels/kernel_api.h"

namespace tersor::scalar {
namespace {

int64_t Int8(int64_t iterations) {
  int32_t sums[4] = {}, a = 3, b = 5;
  for (int64_t i = 0; i < iterations; ++i) {
    __asm__ volatile("" : "+r"(a), "+r"(b));  // the factors are new to the compiler in every round
    for (int32_t& sum : sums) {
      sum += a * b;
      __asm__ volatile("" : "+r"(sum));
    }
  }
  return iterations * 4;
}

}  // namespace

const PeakKernel& Peak() {
  static constexpr PeakKernel kernel = {"peak_scalar", Int8};
  return kernel;
}

}  // namespace tersor::scalar

// The ceiling: sdot, twelve independent sums.
#include "kernels/kernel_api.h"

namespace tersor::neon_dotprod {
namespace {

constexpr int64_t kMacsPerIteration = 12 * 16;

int64_t Int8(int64_t iterations) {
  for (int64_t i = 0; i < iterations; ++i) {
    __asm__ volatile(
        "sdot v0.4s, v12.16b, v13.16b\n"
        "sdot v1.4s, v12.16b, v13.16b\n"
        "sdot v2.4s, v12.16b, v13.16b\n"
        "sdot v3.4s, v12.16b, v13.16b\n"
        "sdot v4.4s, v12.16b, v13.16b\n"
        "sdot v5.4s, v12.16b, v13.16b\n"
        "sdot v6.4s, v12.16b, v13.16b\n"
        "sdot v7.4s, v12.16b, v13.16b\n"
        "sdot v8.4s, v12.16b, v13.16b\n"
        "sdot v9.4s, v12.16b, v13.16b\n"
        "sdot v10.4s, v12.16b, v13.16b\n"
        "sdot v11.4s, v12.16b, v13.16b\n" ::
            : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11");
  }
  return iterations * kMacsPerIteration;
}

}  // namespace

const PeakKernel& Peak() {
  static constexpr PeakKernel kernel = {"peak_neon_dotprod", Int8};
  return kernel;
}

}  // namespace tersor::neon_dotprod

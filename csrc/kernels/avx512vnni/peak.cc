// The ceiling: vpdpbusd on 512 bits, twelve independent sums.
#include "kernels/kernel_api.h"

namespace tersor::avx512vnni {
namespace {

constexpr int64_t kMacsPerIteration = 12 * 64;

int64_t Int8(int64_t iterations) {
  for (int64_t i = 0; i < iterations; ++i) {
    __asm__ volatile(
        "vpdpbusd %%zmm13, %%zmm12, %%zmm0\n"
        "vpdpbusd %%zmm13, %%zmm12, %%zmm1\n"
        "vpdpbusd %%zmm13, %%zmm12, %%zmm2\n"
        "vpdpbusd %%zmm13, %%zmm12, %%zmm3\n"
        "vpdpbusd %%zmm13, %%zmm12, %%zmm4\n"
        "vpdpbusd %%zmm13, %%zmm12, %%zmm5\n"
        "vpdpbusd %%zmm13, %%zmm12, %%zmm6\n"
        "vpdpbusd %%zmm13, %%zmm12, %%zmm7\n"
        "vpdpbusd %%zmm13, %%zmm12, %%zmm8\n"
        "vpdpbusd %%zmm13, %%zmm12, %%zmm9\n"
        "vpdpbusd %%zmm13, %%zmm12, %%zmm10\n"
        "vpdpbusd %%zmm13, %%zmm12, %%zmm11\n" ::
            : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11");
  }
  __asm__ volatile("vzeroupper" ::: "xmm0");
  return iterations * kMacsPerIteration;
}

}  // namespace

const PeakKernel& Peak() {
  static constexpr PeakKernel kernel = {"peak_avx512vnni", Int8};
  return kernel;
}

}  // namespace tersor::avx512vnni

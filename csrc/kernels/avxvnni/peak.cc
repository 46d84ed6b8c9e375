// The ceiling: vpdpbusd on 256 bits, twelve independent sums.
#include "kernels/avxvnni/isa_name.h"
#include "kernels/kernel_api.h"

#ifdef __AVXVNNI__
#define TERSOR_VEX "%{vex%} "
#else
#define TERSOR_VEX
#endif

namespace tersor::TERSOR_ISA_NAME {
namespace {

constexpr int64_t kMacsPerIteration = 12 * 32;

int64_t Int8(int64_t iterations) {
  for (int64_t i = 0; i < iterations; ++i) {
    __asm__ volatile(TERSOR_VEX
                     "vpdpbusd %%ymm13, %%ymm12, %%ymm0\n" TERSOR_VEX "vpdpbusd %%ymm13, %%ymm12, %%ymm1\n" TERSOR_VEX
                     "vpdpbusd %%ymm13, %%ymm12, %%ymm2\n" TERSOR_VEX "vpdpbusd %%ymm13, %%ymm12, %%ymm3\n" TERSOR_VEX
                     "vpdpbusd %%ymm13, %%ymm12, %%ymm4\n" TERSOR_VEX "vpdpbusd %%ymm13, %%ymm12, %%ymm5\n" TERSOR_VEX
                     "vpdpbusd %%ymm13, %%ymm12, %%ymm6\n" TERSOR_VEX "vpdpbusd %%ymm13, %%ymm12, %%ymm7\n" TERSOR_VEX
                     "vpdpbusd %%ymm13, %%ymm12, %%ymm8\n" TERSOR_VEX "vpdpbusd %%ymm13, %%ymm12, %%ymm9\n" TERSOR_VEX
                     "vpdpbusd %%ymm13, %%ymm12, %%ymm10\n" TERSOR_VEX "vpdpbusd %%ymm13, %%ymm12, %%ymm11\n" ::
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                           "xmm11");
  }
  __asm__ volatile("vzeroupper" ::: "xmm0");
  return iterations * kMacsPerIteration;
}

}  // namespace

const PeakKernel& Peak() {
  static constexpr PeakKernel kernel = {TERSOR_QUOTE(TERSOR_JOIN(peak_, TERSOR_ISA_NAME)), Int8};
  return kernel;
}

}  // namespace tersor::TERSOR_ISA_NAME

// The ceiling: vpmaddwd and vpaddd on 256 bits, twelve independent sums.
#include "kernels/kernel_api.h"

namespace tersor::avx2 {
namespace {

constexpr int64_t kMacsPerIteration = 12 * 16;

int64_t Int8(int64_t iterations) {
  for (int64_t i = 0; i < iterations; ++i) {
    __asm__ volatile(
        "vpmaddwd %%ymm14, %%ymm15, %%ymm12\n"
        "vpaddd %%ymm12, %%ymm0, %%ymm0\n"
        "vpmaddwd %%ymm14, %%ymm15, %%ymm12\n"
        "vpaddd %%ymm12, %%ymm1, %%ymm1\n"
        "vpmaddwd %%ymm14, %%ymm15, %%ymm12\n"
        "vpaddd %%ymm12, %%ymm2, %%ymm2\n"
        "vpmaddwd %%ymm14, %%ymm15, %%ymm12\n"
        "vpaddd %%ymm12, %%ymm3, %%ymm3\n"
        "vpmaddwd %%ymm14, %%ymm15, %%ymm12\n"
        "vpaddd %%ymm12, %%ymm4, %%ymm4\n"
        "vpmaddwd %%ymm14, %%ymm15, %%ymm12\n"
        "vpaddd %%ymm12, %%ymm5, %%ymm5\n"
        "vpmaddwd %%ymm14, %%ymm15, %%ymm12\n"
        "vpaddd %%ymm12, %%ymm6, %%ymm6\n"
        "vpmaddwd %%ymm14, %%ymm15, %%ymm12\n"
        "vpaddd %%ymm12, %%ymm7, %%ymm7\n"
        "vpmaddwd %%ymm14, %%ymm15, %%ymm12\n"
        "vpaddd %%ymm12, %%ymm8, %%ymm8\n"
        "vpmaddwd %%ymm14, %%ymm15, %%ymm12\n"
        "vpaddd %%ymm12, %%ymm9, %%ymm9\n"
        "vpmaddwd %%ymm14, %%ymm15, %%ymm12\n"
        "vpaddd %%ymm12, %%ymm10, %%ymm10\n"
        "vpmaddwd %%ymm14, %%ymm15, %%ymm12\n"
        "vpaddd %%ymm12, %%ymm11, %%ymm11\n" ::
            : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
              "xmm12");
  }
  __asm__ volatile("vzeroupper" ::: "xmm0");
  return iterations * kMacsPerIteration;
}

}  // namespace

const PeakKernel& Peak() {
  static constexpr PeakKernel kernel = {"peak_avx2", Int8};
  return kernel;
}

}  // namespace tersor::avx2

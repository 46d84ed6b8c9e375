#include "kernels/kernel_api.h"

namespace tersor {
namespace avx512vnni {
const GemmS8Kernel& GemmS8();  // gemm_s8.cc
const PeakKernel& Peak();      // peak.cc
const SpmmS8Kernel& SpmmS8();  // spmm_s8.cc
}  // namespace avx512vnni

const KernelSet& KernelSet_avx512vnni() {
  static const KernelSet set = {
      "avx512vnni",          nullptr, nullptr, nullptr, &avx512vnni::GemmS8(), &avx512vnni::Peak(),
      &avx512vnni::SpmmS8(), nullptr, nullptr};
  return set;
}

}  // namespace tersor

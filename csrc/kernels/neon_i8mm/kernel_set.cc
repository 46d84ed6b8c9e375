#include "kernels/kernel_api.h"

namespace tersor {
namespace neon_i8mm {
const GemmS8Kernel& GemmS8();  // gemm_s8.cc
const PeakKernel& Peak();      // peak.cc
const SpmmS8Kernel& SpmmS8();  // spmm_s8.cc
}  // namespace neon_i8mm

const KernelSet& KernelSet_neon_i8mm() {
  static const KernelSet set = {
      "neon_i8mm",          nullptr, nullptr, nullptr, &neon_i8mm::GemmS8(), &neon_i8mm::Peak(),
      &neon_i8mm::SpmmS8(), nullptr, nullptr};
  return set;
}

}  // namespace tersor

#include "kernels/kernel_api.h"

namespace tersor {
namespace neon_i8mm {
const GemmS8Kernel& GemmS8();  // gemm_s8.cc
const PeakKernel& Peak();      // peak.cc
const SpmmS8Kernel& SpmmS8();  // spmm_s8.cc
const Lut4Kernel& Lut4();      // lut4.cc
}  // namespace neon_i8mm

const KernelSet& KernelSet_neon_i8mm() {
  static const KernelSet set = [] {
    KernelSet s{};
    s.name = "neon_i8mm";
    s.gemm_s8 = &neon_i8mm::GemmS8();
    s.peak = &neon_i8mm::Peak();
    s.spmm_s8 = &neon_i8mm::SpmmS8();
    s.lut4 = &neon_i8mm::Lut4();
    return s;
  }();
  return set;
}

}  // namespace tersor

#include "kernels/avxvnni/isa_name.h"
#include "kernels/kernel_api.h"

namespace tersor {
namespace TERSOR_ISA_NAME {
const GemmS8Kernel& GemmS8();        // gemm_s8.cc
const PeakKernel& Peak();            // peak.cc
const SpmmS8Kernel& SpmmS8();        // spmm_s8.cc
const AttentionKernel& Attention();  // attention.cc
const Lut4Kernel& Lut4();            // lut4.cc
}  // namespace TERSOR_ISA_NAME

const KernelSet& TERSOR_JOIN(KernelSet_, TERSOR_ISA_NAME)() {
  static const KernelSet set = [] {
    KernelSet s{};
    s.name = TERSOR_QUOTE(TERSOR_ISA_NAME);
    s.gemm_s8 = &TERSOR_ISA_NAME::GemmS8();
    s.peak = &TERSOR_ISA_NAME::Peak();
    s.spmm_s8 = &TERSOR_ISA_NAME::SpmmS8();
    s.attention = &TERSOR_ISA_NAME::Attention();
    s.lut4 = &TERSOR_ISA_NAME::Lut4();
    return s;
  }();
  return set;
}

}  // namespace tersor

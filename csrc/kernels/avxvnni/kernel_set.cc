#include "kernels/avxvnni/isa_name.h"
#include "kernels/kernel_api.h"

namespace tersor {
namespace TERSOR_ISA_NAME {
const GemmS8Kernel& GemmS8();  // gemm_s8.cc
const PeakKernel& Peak();      // peak.cc
const SpmmS8Kernel& SpmmS8();  // spmm_s8.cc
}  // namespace TERSOR_ISA_NAME

const KernelSet& TERSOR_JOIN(KernelSet_, TERSOR_ISA_NAME)() {
  static const KernelSet set = {
      TERSOR_QUOTE(TERSOR_ISA_NAME), nullptr, nullptr, nullptr, &TERSOR_ISA_NAME::GemmS8(), &TERSOR_ISA_NAME::Peak(),
      &TERSOR_ISA_NAME::SpmmS8(),    nullptr, nullptr};
  return set;
}

}  // namespace tersor

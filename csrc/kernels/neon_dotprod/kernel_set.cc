#include "kernels/kernel_api.h"

namespace tersor {
namespace neon_dotprod {
const QuantizeKernel& Quantize();      // quantize.cc
const ConvertKernel& Convert();        // convert.cc
const ActivationKernel& Activation();  // activation.cc
const GemmS8Kernel& GemmS8();          // gemm_s8.cc
const PeakKernel& Peak();              // peak.cc
const SpmmS8Kernel& SpmmS8();          // spmm_s8.cc
const SpmmF32Kernel& SpmmF32();        // spmm_f32.cc
}  // namespace neon_dotprod

const KernelSet& KernelSet_neon_dotprod() {
  static const KernelSet set = {"neon_dotprod",
                                &neon_dotprod::Quantize(),
                                &neon_dotprod::Convert(),
                                &neon_dotprod::Activation(),
                                &neon_dotprod::GemmS8(),
                                &neon_dotprod::Peak(),
                                &neon_dotprod::SpmmS8(),
                                &neon_dotprod::SpmmF32(),
                                nullptr};
  return set;
}

}  // namespace tersor

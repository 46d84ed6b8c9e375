#include "kernels/kernel_api.h"

namespace tersor {
namespace scalar {
const QuantizeKernel& Quantize();      // quantize.cc
const ConvertKernel& Convert();        // convert.cc
const ActivationKernel& Activation();  // activation.cc
const GemmS8Kernel& GemmS8();          // gemm_s8.cc
const PeakKernel& Peak();              // peak.cc
const SpmmS8Kernel& SpmmS8();          // spmm_s8.cc
const SpmmF32Kernel& SpmmF32();        // spmm_f32.cc
}  // namespace scalar

const KernelSet& KernelSet_scalar() {
  static const KernelSet set = {"scalar",
                                &scalar::Quantize(),
                                &scalar::Convert(),
                                &scalar::Activation(),
                                &scalar::GemmS8(),
                                &scalar::Peak(),
                                &scalar::SpmmS8(),
                                &scalar::SpmmF32(),
                                nullptr};
  return set;
}

}  // namespace tersor

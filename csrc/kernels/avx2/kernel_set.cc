#include "kernels/kernel_api.h"

namespace tersor {
namespace avx2 {
const QuantizeKernel& Quantize();      // quantize.cc
const ConvertKernel& Convert();        // convert.cc
const ActivationKernel& Activation();  // activation.cc
const GemmS8Kernel& GemmS8();          // gemm_s8.cc
const PeakKernel& Peak();              // peak.cc
const SpmmS8Kernel& SpmmS8();          // spmm_s8.cc
const SpmmF32Kernel& SpmmF32();        // spmm_f32.cc
}  // namespace avx2

const KernelSet& KernelSet_avx2() {
  static const KernelSet set = {"avx2",          &avx2::Quantize(), &avx2::Convert(), &avx2::Activation(),
                                &avx2::GemmS8(), &avx2::Peak(),     &avx2::SpmmS8(),  &avx2::SpmmF32(),
                                nullptr};
  return set;
}

}  // namespace tersor

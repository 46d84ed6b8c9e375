#include "kernels/kernel_api.h"

namespace tersor {
namespace avx512 {
const QuantizeKernel& Quantize();      // quantize.cc
const ConvertKernel& Convert();        // convert.cc
const ActivationKernel& Activation();  // activation.cc
const GemmS8Kernel& GemmS8();          // gemm_s8.cc
const PeakKernel& Peak();              // peak.cc
const SpmmS8Kernel& SpmmS8();          // spmm_s8.cc
const SpmmF32Kernel& SpmmF32();        // spmm_f32.cc
}  // namespace avx512

const KernelSet& KernelSet_avx512() {
  static const KernelSet set = {"avx512",
                                &avx512::Quantize(),
                                &avx512::Convert(),
                                &avx512::Activation(),
                                &avx512::GemmS8(),
                                &avx512::Peak(),
                                &avx512::SpmmS8(),
                                &avx512::SpmmF32(),
                                nullptr};
  return set;
}

}  // namespace tersor

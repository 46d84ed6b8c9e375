#include "kernels/kernel_api.h"

namespace tersor {
namespace avx512 {
const QuantizeKernel& Quantize();      // quantize.cc
const ActivationKernel& Activation();  // activation.cc
}  // namespace avx512

const KernelSet& KernelSet_avx512() {
  static const KernelSet set = {"avx512", &avx512::Quantize(), nullptr, &avx512::Activation(), nullptr};
  return set;
}

}  // namespace tersor

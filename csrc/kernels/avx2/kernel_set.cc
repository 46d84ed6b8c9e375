#include "kernels/kernel_api.h"

namespace tersor {
namespace avx2 {
const ActivationKernel& Activation();  // activation.cc
}  // namespace avx2

const KernelSet& KernelSet_avx2() {
  static const KernelSet set = {"avx2", nullptr, nullptr, &avx2::Activation(), nullptr};
  return set;
}

}  // namespace tersor

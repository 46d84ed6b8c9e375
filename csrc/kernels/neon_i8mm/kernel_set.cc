#include "kernels/kernel_api.h"

namespace tersor {
namespace neon_i8mm {
const GemmS8Kernel& GemmS8();  // gemm_s8.cc
}  // namespace neon_i8mm

const KernelSet& KernelSet_neon_i8mm() {
  static const KernelSet set = {"neon_i8mm", nullptr, nullptr, nullptr, &neon_i8mm::GemmS8()};
  return set;
}

}  // namespace tersor

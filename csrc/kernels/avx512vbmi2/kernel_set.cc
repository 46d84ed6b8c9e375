#include "kernels/kernel_api.h"

namespace tersor {
namespace avx512vbmi2 {
const SpmmS8RowsKernel& SpmmS8Rows();  // spmm_s8_rows.cc
}  // namespace avx512vbmi2

const KernelSet& KernelSet_avx512vbmi2() {
  static const KernelSet set = {
      "avx512vbmi2", nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, &avx512vbmi2::SpmmS8Rows()};
  return set;
}

}  // namespace tersor

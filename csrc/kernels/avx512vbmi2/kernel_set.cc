#include "kernels/kernel_api.h"

namespace tersor {
namespace avx512vbmi2 {
const SpmmS8RowsKernel& SpmmS8Rows();  // spmm_s8_rows.cc
}  // namespace avx512vbmi2

const KernelSet& KernelSet_avx512vbmi2() {
  static const KernelSet set = [] {
    KernelSet s{};
    s.name = "avx512vbmi2";
    s.spmm_s8_rows = &avx512vbmi2::SpmmS8Rows();
    return s;
  }();
  return set;
}

}  // namespace tersor

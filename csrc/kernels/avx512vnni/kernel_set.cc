#include "kernels/kernel_api.h"

namespace tersor {
namespace avx512vnni {
const GemmS8Kernel& GemmS8();            // gemm_s8.cc
const PeakKernel& Peak();                // peak.cc
const SpmmS8Kernel& SpmmS8();            // spmm_s8.cc
const AttentionKernel& Attention();      // attention.cc
const GemmBytesS8Kernel& GemmBytesS8();  // gemm_bytes_s8.cc
const DepthwiseS8Kernel& DepthwiseS8();  // depthwise_s8.cc
const Lut4Kernel& Lut4();                // lut4.cc
}  // namespace avx512vnni

const KernelSet& KernelSet_avx512vnni() {
  static const KernelSet set = [] {
    KernelSet s{};
    s.name = "avx512vnni";
    s.gemm_s8 = &avx512vnni::GemmS8();
    s.peak = &avx512vnni::Peak();
    s.spmm_s8 = &avx512vnni::SpmmS8();
    s.attention = &avx512vnni::Attention();
    s.gemm_bytes_s8 = &avx512vnni::GemmBytesS8();
    s.depthwise_s8 = &avx512vnni::DepthwiseS8();
    s.lut4 = &avx512vnni::Lut4();
    return s;
  }();
  return set;
}

}  // namespace tersor

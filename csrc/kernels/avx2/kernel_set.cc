#include "kernels/kernel_api.h"

namespace tersor {
namespace avx2 {
const QuantizeKernel& Quantize();          // quantize.cc
const ConvertKernel& Convert();            // convert.cc
const ActivationKernel& Activation();      // activation.cc
const GemmS8Kernel& GemmS8();              // gemm_s8.cc
const PeakKernel& Peak();                  // peak.cc
const SpmmS8Kernel& SpmmS8();              // spmm_s8.cc
const SpmmF32Kernel& SpmmF32();            // spmm_f32.cc
const ConvS8Kernel& ConvS8();              // conv_s8.cc
const DepthwiseS8Kernel& DepthwiseS8();    // depthwise_s8.cc
const AttentionKernel& Attention();        // attention.cc
const NormKernel& Norm();                  // norm.cc
const GemmF32Kernel& GemmF32();            // gemm_f32.cc
const ActivationKernel& ActivationNear();  // activation.cc
const Lut4Kernel& Lut4();                  // lut4.cc
const RecurrentKernel& RecurrentCells();   // recurrent.cc
const EmbeddingKernel& Embedding();        // embedding.cc
}  // namespace avx2

const KernelSet& KernelSet_avx2() {
  static const KernelSet set = [] {
    KernelSet s{};
    s.name = "avx2";
    s.quantize = &avx2::Quantize();
    s.convert = &avx2::Convert();
    s.activation = &avx2::Activation();
    s.activation_near = &avx2::ActivationNear();
    s.gemm_s8 = &avx2::GemmS8();
    s.peak = &avx2::Peak();
    s.spmm_s8 = &avx2::SpmmS8();
    s.spmm_f32 = &avx2::SpmmF32();
    s.conv_s8 = &avx2::ConvS8();
    s.depthwise_s8 = &avx2::DepthwiseS8();
    s.attention = &avx2::Attention();
    s.norm = &avx2::Norm();
    s.gemm_f32 = &avx2::GemmF32();
    s.lut4 = &avx2::Lut4();
    s.recurrent = &avx2::RecurrentCells();
    s.embedding = &avx2::Embedding();
    return s;
  }();
  return set;
}

}  // namespace tersor

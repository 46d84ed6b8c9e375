#include "kernels/kernel_api.h"

namespace tersor {
namespace avx512 {
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
}  // namespace avx512

const KernelSet& KernelSet_avx512() {
  static const KernelSet set = [] {
    KernelSet s{};
    s.name = "avx512";
    s.quantize = &avx512::Quantize();
    s.convert = &avx512::Convert();
    s.activation = &avx512::Activation();
    s.activation_near = &avx512::ActivationNear();
    s.gemm_s8 = &avx512::GemmS8();
    s.peak = &avx512::Peak();
    s.spmm_s8 = &avx512::SpmmS8();
    s.spmm_f32 = &avx512::SpmmF32();
    s.conv_s8 = &avx512::ConvS8();
    s.depthwise_s8 = &avx512::DepthwiseS8();
    s.attention = &avx512::Attention();
    s.norm = &avx512::Norm();
    s.gemm_f32 = &avx512::GemmF32();
    s.lut4 = &avx512::Lut4();
    s.recurrent = &avx512::RecurrentCells();
    s.embedding = &avx512::Embedding();
    return s;
  }();
  return set;
}

}  // namespace tersor

#include "kernels/kernel_api.h"

namespace tersor {
namespace scalar {
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
}  // namespace scalar

const KernelSet& KernelSet_scalar() {
  static const KernelSet set = [] {
    KernelSet s{};
    s.name = "scalar";
    s.quantize = &scalar::Quantize();
    s.convert = &scalar::Convert();
    s.activation = &scalar::Activation();
    s.activation_near = &scalar::ActivationNear();
    s.gemm_s8 = &scalar::GemmS8();
    s.peak = &scalar::Peak();
    s.spmm_s8 = &scalar::SpmmS8();
    s.spmm_f32 = &scalar::SpmmF32();
    s.conv_s8 = &scalar::ConvS8();
    s.depthwise_s8 = &scalar::DepthwiseS8();
    s.attention = &scalar::Attention();
    s.norm = &scalar::Norm();
    s.gemm_f32 = &scalar::GemmF32();
    s.lut4 = &scalar::Lut4();
    s.recurrent = &scalar::RecurrentCells();
    s.embedding = &scalar::Embedding();
    return s;
  }();
  return set;
}

}  // namespace tersor

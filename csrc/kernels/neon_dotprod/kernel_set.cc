#include "kernels/kernel_api.h"

namespace tersor {
namespace neon_dotprod {
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
}  // namespace neon_dotprod

const KernelSet& KernelSet_neon_dotprod() {
  static const KernelSet set = [] {
    KernelSet s{};
    s.name = "neon_dotprod";
    s.quantize = &neon_dotprod::Quantize();
    s.convert = &neon_dotprod::Convert();
    s.activation = &neon_dotprod::Activation();
    s.activation_near = &neon_dotprod::ActivationNear();
    s.gemm_s8 = &neon_dotprod::GemmS8();
    s.peak = &neon_dotprod::Peak();
    s.spmm_s8 = &neon_dotprod::SpmmS8();
    s.spmm_f32 = &neon_dotprod::SpmmF32();
    s.conv_s8 = &neon_dotprod::ConvS8();
    s.depthwise_s8 = &neon_dotprod::DepthwiseS8();
    s.attention = &neon_dotprod::Attention();
    s.norm = &neon_dotprod::Norm();
    s.gemm_f32 = &neon_dotprod::GemmF32();
    s.lut4 = &neon_dotprod::Lut4();
    s.recurrent = &neon_dotprod::RecurrentCells();
    s.embedding = &neon_dotprod::Embedding();
    return s;
  }();
  return set;
}

}  // namespace tersor

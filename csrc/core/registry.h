#pragma once
#include <vector>

#include "core/cpu_features.h"
#include "kernels/kernel_api.h"

namespace tersor {

// The kernel sets that this CPU can run, worst first, whatever the cap. Never empty: scalar comes first.
const std::vector<const KernelSet*>& RunnableKernelSets();

// Best kernel of one op under the cap: the first set, best first, that has it.
struct Selection {
  const QuantizeKernel* quantize;
  const ConvertKernel* convert;
  const ActivationKernel* activation;
  const ActivationKernel* activation_near;
  const GemmS8Kernel* gemm_s8;
  const PeakKernel* peak;
  const SpmmS8Kernel* spmm_s8;
  const SpmmF32Kernel* spmm_f32;
  const SpmmS8RowsKernel* spmm_s8_rows;  // or null
  const ConvS8Kernel* conv_s8;
  const DepthwiseS8Kernel* depthwise_s8;
  const GemmBytesS8Kernel* gemm_bytes_s8;  // or null
  const AttentionKernel* attention;
  const NormKernel* norm;
  const GemmF32Kernel* gemm_f32;
  const Lut4Kernel* lut4;
  const RecurrentKernel* recurrent;
  const EmbeddingKernel* embedding;
  const char* isa;  // the best set under the cap
};
const Selection& Selected();

}  // namespace tersor

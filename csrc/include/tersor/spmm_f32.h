// y = act(x W^T + bias + residual) with sparse float32 weights. docs/kernels.md, "Sparse float weights", has the order
// of the sums, which is the same on every instruction set, and the layout.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "tersor/executor.h"
#include "tersor/types.h"

namespace tersor {

// --- Packing. A packed weight is one relocatable block of bytes, a cache for the CPU it was packed
// on. It keeps the non-zeros of W, 6 bytes each; -0 is a zero and does not come back.

// Bytes of the packed W [n][k] for the active kernel. Throws Error when n or k is not positive or too large.
TERSOR_API size_t PackedBytesSpmmF32(int64_t n, int64_t k, const float* weight);
TERSOR_API void PackSpmmF32(int64_t n, int64_t k, const float* weight, void* packed, size_t packed_bytes);
// The inverse, exactly: weight [n][k].
TERSOR_API void UnpackSpmmF32(const void* packed, size_t packed_bytes, float* weight);

struct PackedInfoSpmmF32 {
  int64_t n, k;
  int64_t nnz;
  std::string kernel;  // kernel id, such as spmm_f32_4x32_avx512
  bool runnable;       // this CPU can run that kernel
};
// Throws Error when the bytes are not a sparse float packed weight of this version or are truncated.
TERSOR_API PackedInfoSpmmF32 InspectPackedSpmmF32(const void* packed, size_t packed_bytes);

// --- The op.

struct SpmmF32Args {
  int64_t m;      // rows of x
  const void* x;  // [m][k], row stride ldx elements
  int64_t ldx;
  DType dtype;  // of x, residual and y
  const void* packed;
  size_t packed_bytes;
  const float* bias;     // [n], or null
  const void* residual;  // [m][n] of `dtype`, row stride ldr, or null; added before the activation; may be y
  int64_t ldr;
  Activation activation;
  void* y;  // [m][n] of `dtype`, row stride ldy
  int64_t ldy;
};
TERSOR_API void SpmmF32(const SpmmF32Args& args, const Executor& executor);

}  // namespace tersor

// y = act(x W^T + bias + residual) with int8 weights and 8-bit activations. docs/kernels.md has the numeric contract.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "tersor/executor.h"
#include "tersor/types.h"

namespace tersor {

// --- Packing. A packed weight is one relocatable block of bytes, a cache for the CPU it was packed on.

// Bytes of a packed [n, k] weight for the active kernel. Throws Error when n or k is not positive or too large.
TERSOR_API size_t PackedBytesS8(int64_t n, int64_t k);
// Writes the header; rows are then filled in by PackRowsS8, in blocks, so that no second copy of the weight exists.
TERSOR_API void PackBeginS8(int64_t n, int64_t k, void* packed, size_t packed_bytes);
// Rows [row_begin, row_begin + rows) of W: weight [rows][k] in [-127, 127], scale [rows] finite and > 0.
// row_begin must be a multiple of kPackRowsS8; so must rows, except in the last block.
constexpr int64_t kPackRowsS8 = 64;
TERSOR_API void PackRowsS8(int64_t row_begin, int64_t rows, const int8_t* weight, const float* scale, void* packed,
                           size_t packed_bytes);
// Smoothing: the op multiplies column i of x by input_scale[i] (finite, > 0) before it quantises, so W must have been
// divided by it before it was quantised. After PackBeginS8; null takes it away.
TERSOR_API void SetInputScaleS8(const float* input_scale, void* packed, size_t packed_bytes);
// The [k] values inside the block, or null when there are none.
TERSOR_API const float* InputScaleS8(const void* packed, size_t packed_bytes);
// The inverse; any row range that starts at a multiple of kPackRowsS8.
TERSOR_API void UnpackRowsS8(int64_t row_begin, int64_t rows, const void* packed, size_t packed_bytes, int8_t* weight,
                             float* scale);

// What the header says, in a few nanoseconds. Throws Error as InspectPackedS8 does.
struct PackedShapeS8 {
  int64_t n, k;
};
TERSOR_API PackedShapeS8 ShapeOfPackedS8(const void* packed, size_t packed_bytes);

struct PackedInfoS8 {
  int64_t n, k;
  std::string kernel;  // kernel id, such as gemm_s8_14x32_avx512vnni
  bool runnable;       // this CPU can run that kernel
};
// Throws Error when the bytes are not a packed weight of this version or are truncated.
TERSOR_API PackedInfoS8 InspectPackedS8(const void* packed, size_t packed_bytes);

// --- The op.

struct LinearS8Args {
  int64_t m;      // rows of x
  const void* x;  // [m][k], row stride ldx elements
  int64_t ldx;
  DType dtype;  // of x, residual and y
  const void* packed;
  size_t packed_bytes;
  const float* bias;     // [n], or null
  const void* residual;  // [m][n] of `dtype`, row stride ldr, or null; added before the activation
  int64_t ldr;
  Activation activation;
  float x_scale;         // > 0: static quantisation with x_scale and x_zero_point; 0: dynamic per row
  int32_t x_zero_point;  // [0, 255]
  void* y;               // [m][n] of `dtype`, row stride ldy
  int64_t ldy;
};
TERSOR_API void LinearS8(const LinearS8Args& args, const Executor& executor);
// Below this many multiply-adds a call takes less than about 20 us and waking a thread costs more than it saves: it
// stays on the calling thread.
constexpr int64_t kSerialMacsS8 = int64_t{5} << 19;

// --- Its parts, for tests, benches and NumPy users.

// Per-row dynamic quantisation: q [m][k], scale [m], zero_point [m], row_sum [m] (may be null).
TERSOR_API void QuantizeRows(int64_t m, int64_t k, const float* x, int64_t ldx, uint8_t* q, float* scale,
                             int32_t* zero_point, int32_t* row_sum);
// c[m][n] = a[m][k] (unsigned) * W^T, the exact integers. k <= kMaxDepthS8.
constexpr int64_t kMaxDepthS8 = 65536;
TERSOR_API void GemmS8(int64_t m, const uint8_t* a, int64_t lda, const void* packed, size_t packed_bytes, int32_t* c,
                       int64_t ldc, const Executor& executor);
// In place on n floats.
TERSOR_API void Activate(Activation activation, int64_t n, float* x);

}  // namespace tersor

// Host side of the CUDA sparse kernels: from W [n][k] to the operands of tersor/cuda.h, in host memory, and back. Plain
// C++: no device is needed. docs/kernels.md, "CUDA layouts", draws them. Everything throws Error when n or k is not
// positive or k exceeds kMaxDepthS8.
#pragma once
#include <cstdint>

#include "tersor/error.h"

namespace tersor::cuda {

// [n] sum over k of W: col_sum of every int8 kernel.
TERSOR_API void ColumnSums(int64_t n, int64_t k, const int8_t* w, int32_t* col_sum);

// --- 2:4. Throws Error, naming the place, when a group of 4 consecutive k holds more than 2 non-zeros.
struct Sparse24Bytes {
  int64_t values, metadata;
};
TERSOR_API Sparse24Bytes PackedBytesSparse24S8(int64_t n, int64_t k);
TERSOR_API void PackSparse24S8(int64_t n, int64_t k, const int8_t* w, void* values, void* metadata);
TERSOR_API void UnpackSparse24S8(int64_t n, int64_t k, const void* values, const void* metadata, int8_t* w);
TERSOR_API Sparse24Bytes PackedBytesSparse24F16(int64_t n, int64_t k);  // w are the bits of float16
TERSOR_API void PackSparse24F16(int64_t n, int64_t k, const uint16_t* w, void* values, void* metadata);
TERSOR_API void UnpackSparse24F16(int64_t n, int64_t k, const void* values, const void* metadata, uint16_t* w);

// --- Bitmap: any W.
struct BitmapBytes {
  int64_t bitmap, values, offsets;
};
TERSOR_API BitmapBytes PackedBytesBitmapS8(int64_t n, int64_t k, const int8_t* w);
TERSOR_API void PackBitmapS8(int64_t n, int64_t k, const int8_t* w, uint32_t* bitmap, int8_t* values, int32_t* offsets);
TERSOR_API void UnpackBitmapS8(int64_t n, int64_t k, const uint32_t* bitmap, const int8_t* values,
                               const int32_t* offsets, int8_t* w);

// --- Blocks of 16 weight rows by 32 of k: any W; blocks of zeros are left out.
constexpr int64_t kBlockRowsS8 = 16, kBlockDepthS8 = 32;
TERSOR_API int64_t CountBlocksS8(int64_t n, int64_t k, const int8_t* w);
// values [blocks][512], row_offsets [ceil(n / 16) + 1], column_indices [blocks].
TERSOR_API void PackBlockS8(int64_t n, int64_t k, const int8_t* w, int8_t* values, int32_t* row_offsets,
                            int32_t* column_indices);
TERSOR_API void UnpackBlockS8(int64_t n, int64_t k, const int8_t* values, const int32_t* row_offsets,
                              const int32_t* column_indices, int8_t* w);

// --- CSR. row_offsets [n + 1], column_indices and values [non-zeros], ascending in each row.
TERSOR_API int64_t CountNonZerosS8(int64_t n, int64_t k, const int8_t* w);
TERSOR_API int64_t CountNonZerosF32(int64_t n, int64_t k, const float* w);
TERSOR_API void PackCsrS8(int64_t n, int64_t k, const int8_t* w, int8_t* values, int32_t* row_offsets,
                          uint16_t* column_indices);
TERSOR_API void PackCsrF32(int64_t n, int64_t k, const float* w, float* values, int32_t* row_offsets,
                           uint16_t* column_indices);

}  // namespace tersor::cuda

// y = act(x W^T + bias + residual) with sparse int8 weights: linear_s8 for a W that is mostly zero, the same numbers
// bit for bit. docs/kernels.md, "Sparse weights", has the layout.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "tersor/executor.h"
#include "tersor/linear_s8.h"

namespace tersor {

// --- Packing. A packed weight is one relocatable block of bytes, a cache for the CPU it was packed on. Any W may be
// packed. The pattern of its non-zeros decides the form: quads of 4 consecutive k as they are, quads after the values
// of k changed places, or columns, where 4 non-zeros of any place make a quad.

// Bytes of the packed W [n][k] for the active kernel. Throws Error when n or k is not positive or too large, k being
// at most kMaxDepthS8.
TERSOR_API size_t PackedBytesSpmmS8(int64_t n, int64_t k, const int8_t* weight);
// weight [n][k] in [-127, 127]; scale [n] finite and > 0; input_scale [k] finite and > 0, or null (SetInputScaleS8).
TERSOR_API void PackSpmmS8(int64_t n, int64_t k, const int8_t* weight, const float* scale, const float* input_scale,
                           void* packed, size_t packed_bytes);
// The inverse, exactly: weight [n][k], scale [n].
TERSOR_API void UnpackSpmmS8(const void* packed, size_t packed_bytes, int8_t* weight, float* scale);
// The [k] values inside the block, or null when there are none.
TERSOR_API const float* InputScaleSpmmS8(const void* packed, size_t packed_bytes);

struct PackedInfoSpmmS8 {
  int64_t n, k;
  int64_t quads;       // of 4 consecutive k that hold a non-zero, of n * ceil(k / 4)
  std::string form;    // "quads", "ordered quads" or "columns"
  std::string kernel;  // kernel id, such as spmm_s8_4x64_avx512vnni
  bool runnable;       // this CPU can run that kernel
};
// Throws Error when the bytes are not a sparse packed weight of this version or are truncated.
TERSOR_API PackedInfoSpmmS8 InspectPackedSpmmS8(const void* packed, size_t packed_bytes);

// --- The op: LinearS8 with a sparse packed weight.
TERSOR_API void SpmmS8(const LinearS8Args& args, const Executor& executor);

// c[m][n] = a[m][k] (unsigned) * W^T, the exact integers, for tests and NumPy users.
TERSOR_API void SpmmS8Sums(int64_t m, const uint8_t* a, int64_t lda, const void* packed, size_t packed_bytes,
                           int32_t* c, int64_t ldc);

}  // namespace tersor

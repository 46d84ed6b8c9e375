// y = act(x W^T + bias + residual) with weights that are codes of a table, 8-bit activations. docs/kernels.md, "Code
// books", has the numeric contract.
#pragma once
#include <string>

#include "tersor/linear_s8.h"

namespace tersor {

// The weight is table[code] * scale. Codes of 2 to 4 bits are kept as codes, those of 5 to 8 bits as int8 values.
struct Lut4Spec {
  int64_t n, k;
  int64_t group;         // values of k that share a scale: a multiple of 32 up to 65536, or 0: all of a row do
  int32_t bits;          // 2 to 8; a table has 2^bits entries in [-127, 127]
  int64_t table_rows;    // weight rows with a table of their own: n, or 1 for all
  int64_t table_groups;  // groups with a table of their own: 1, or ceil(k / group), which needs table_rows == n
  int64_t groups() const { return group == 0 ? 1 : (k + group - 1) / group; }
};

// Throws Error when the spec is not valid.
TERSOR_API size_t PackedBytesLut4(const Lut4Spec& spec);
struct Lut4Weight {
  const uint8_t* codes;      // [n][k]
  const int8_t* table;       // [table_rows][table_groups][2^bits]
  const float* scale;        // [n][groups], finite and > 0
  const float* input_scale;  // [k], or null: as SetInputScaleS8 has it
};
// Throws Error when a code, an entry or a scale is out of range.
TERSOR_API void PackLut4(const Lut4Spec& spec, const Lut4Weight& weight, void* packed, size_t packed_bytes);

struct PackedInfoLut4 {
  int64_t n, k;
  Lut4Spec spec;
  bool smoothed;
  std::string kernel;  // that reads it under the active instruction set: every one reads the same bytes
};
TERSOR_API PackedInfoLut4 InspectPackedLut4(const void* packed, size_t packed_bytes);
// The inverse, into arrays of these sizes; any may be null. Of codes that stand for the same value, from 5 bits on, the
// lowest comes back.
TERSOR_API void UnpackLut4(const void* packed, size_t packed_bytes, uint8_t* codes, int8_t* table, float* scale,
                           float* input_scale);

TERSOR_API void LinearLut4(const LinearS8Args& args, const Executor& executor);
// c[m][n] = a[m][k] (unsigned) * table[codes]^T, the exact integers without any scale. k <= kMaxDepthS8.
TERSOR_API void GemmLut4(int64_t m, const uint8_t* a, int64_t lda, const void* packed, size_t packed_bytes, int32_t* c,
                         int64_t ldc, const Executor& executor);

}  // namespace tersor

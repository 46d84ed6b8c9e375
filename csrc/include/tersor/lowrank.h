// y = act((x V) U + bias + residual), the factors of a low-rank weight in one call: the [rows, rank] intermediate of a
// strip of rows stays in the cache. V is `down` [rank][k], U is `up` [n][rank], so that the weight is up * down.
// docs/kernels.md, "Low rank", has the numeric contract.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "tersor/executor.h"
#include "tersor/linear_s8.h"
#include "tersor/spmm_f32.h"

namespace tersor {

// A packed weight is one relocatable block of bytes, a cache for the CPU it was packed on.
struct PackedInfoLowRank {
  int64_t n, k, rank;
  bool dense;          // int8: there is a dense weight beside the factors
  std::string kernel;  // kernel id, such as gemm_f32_14x32_avx512
  bool runnable;       // this CPU can run that kernel
};

// --- Float32 factors.

// Throws Error when an extent is not positive or too large.
TERSOR_API size_t PackedBytesLowRankF32(int64_t n, int64_t k, int64_t rank);
TERSOR_API void PackLowRankF32(int64_t n, int64_t k, int64_t rank, const float* down, const float* up, void* packed,
                               size_t packed_bytes);
// The inverse, exactly: down [rank][k], up [n][rank].
TERSOR_API void UnpackLowRankF32(const void* packed, size_t packed_bytes, float* down, float* up);
// Throws Error when the bytes are not such a packed weight of this version or are truncated.
TERSOR_API PackedInfoLowRank InspectPackedLowRankF32(const void* packed, size_t packed_bytes);

using LowRankF32Args = SpmmF32Args;  // the same meaning: x, y and residual of any dtype, arithmetic in float32
TERSOR_API void LowRankF32(const LowRankF32Args& args, const Executor& executor);

// --- Int8 factors, and where there is one a dense int8 weight beside them: y = act(x W + (x V) U + bias + residual).

struct LowRankWeightS8 {
  int64_t n, k, rank;        // k and rank at most kMaxDepthS8
  const int8_t* down;        // [rank][k] in [-127, 127]
  const float* down_scale;   // [rank], finite and > 0
  const int8_t* up;          // [n][rank]
  const float* up_scale;     // [n]
  const int8_t* dense;       // [n][k], or null
  const float* dense_scale;  // [n], or null
  const float* input_scale;  // [k], or null: x is multiplied by it before it is quantised
};
TERSOR_API size_t PackedBytesLowRankS8(int64_t n, int64_t k, int64_t rank, bool dense);
TERSOR_API void PackLowRankS8(const LowRankWeightS8& weight, void* packed, size_t packed_bytes);
// The inverse; dense and dense_scale are not touched where there is no dense weight.
TERSOR_API void UnpackLowRankS8(const void* packed, size_t packed_bytes, int8_t* down, float* down_scale, int8_t* up,
                                float* up_scale, int8_t* dense, float* dense_scale);
// The [k] values inside the block, or null when there are none.
TERSOR_API const float* InputScaleLowRankS8(const void* packed, size_t packed_bytes);
TERSOR_API PackedInfoLowRank InspectPackedLowRankS8(const void* packed, size_t packed_bytes);

TERSOR_API void LowRankS8(const LinearS8Args& args, const Executor& executor);

}  // namespace tersor

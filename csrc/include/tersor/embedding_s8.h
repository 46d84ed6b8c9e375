// Embeddings with rows of 8 or 4 bits and a scale each: w[r, i] = fl(q[r, i] * scale[r]).
#pragma once
#include "tersor/executor.h"

namespace tersor {

struct EmbeddingSpec {
  int64_t rows, dim;
  int32_t bits;                                                          // 8 or 4
  int64_t row_bytes() const { return bits == 8 ? dim : (dim + 1) / 2; }  // kernels/embedding_api.h has their order
};

TERSOR_API size_t PackedBytesEmbedding(const EmbeddingSpec& spec);
// data [rows][row_bytes]; scale [rows], finite and > 0.
TERSOR_API void PackEmbedding(const EmbeddingSpec& spec, const uint8_t* data, const float* scale, void* packed,
                              size_t packed_bytes);
TERSOR_API EmbeddingSpec SpecOfEmbedding(const void* packed, size_t packed_bytes);
TERSOR_API void UnpackEmbedding(const void* packed, size_t packed_bytes, uint8_t* data, float* scale);

// y[i] = w[indices[i]]. Throws Error when an index is not a row.
TERSOR_API void EmbeddingS8(const void* packed, size_t packed_bytes, int64_t count, const int64_t* indices, float* y,
                            const Executor& executor);

enum class BagMode : int32_t { kSum = 0, kMean = 1, kMax = 2 };
struct EmbeddingBagArgs {
  const void* packed;
  size_t packed_bytes;
  int64_t count, bags;
  const int64_t* indices;  // [count]
  const int64_t* offsets;  // [bags + 1], not falling, from 0 to count
  const float* weights;    // [count], of a sum; or null
  BagMode mode;
  int64_t padding;  // the index that takes no part, or -1
  float* y;         // [bags][dim]
};
// y[b] = the sum of fl(w * weight) in the order of the indices, each step rounded once; or that divided by how many
// took part; or the largest. A bag in which nothing takes part is 0.
TERSOR_API void EmbeddingBagS8(const EmbeddingBagArgs& args, const Executor& executor);

}  // namespace tersor

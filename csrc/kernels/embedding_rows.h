// Rows of embeddings, compiled once per instruction set. No intrinsics: each loop is a conversion and a multiplication
// an element, which the compiler turns into vectors by itself.
//
// Included only by kernels/<isa>/embedding.cc.
#pragma once
#include "kernels/embedding_api.h"

namespace {

using tersor::EmbeddingRow;

// use(i, value) for every value of the row, as a float.
template <typename Use>
[[gnu::always_inline]] inline void ForEach(int64_t n, const EmbeddingRow& row, Use use) {
  if (!row.halves) {
    const int8_t* values = reinterpret_cast<const int8_t*>(row.data);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) use(i, static_cast<float>(values[i]) * row.scale);
    return;
  }
  const int64_t half = (n + 1) / 2;
#pragma GCC ivdep
  for (int64_t i = 0; i < half; ++i) use(i, static_cast<float>((row.data[i] & 15) - 8) * row.scale);
#pragma GCC ivdep
  for (int64_t i = half; i < n; ++i) use(i, static_cast<float>((row.data[i - half] >> 4) - 8) * row.scale);
}

inline void Copy(int64_t n, const EmbeddingRow& row, float* y) {
  ForEach(n, row, [y](int64_t i, float v) { y[i] = v; });
}

inline void Add(int64_t n, const EmbeddingRow& row, float factor, bool weighted, float* y) {
  if (weighted)
    ForEach(n, row, [y, factor](int64_t i, float v) { y[i] = y[i] + v * factor; });
  else
    ForEach(n, row, [y](int64_t i, float v) { y[i] = y[i] + v; });
}

inline void Max(int64_t n, const EmbeddingRow& row, float* y) {
  ForEach(n, row, [y](int64_t i, float v) { y[i] = v > y[i] ? v : y[i]; });
}

}  // namespace

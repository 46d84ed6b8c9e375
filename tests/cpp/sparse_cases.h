// Sparse weights of awkward patterns, and the call that packs them.
#pragma once
#include <algorithm>
#include <vector>

#include "linear_run.h"
#include "tersor/spmm_s8.h"

namespace tersor::testing {

enum class Pattern {
  kEmpty,
  kFull,
  kOneWeight,
  kOneColumn,
  kEmptyRows,
  kOneFullRow,
  kUneven,
  kQuads,
  kScatteredQuads,
  kUnstructured
};
constexpr Pattern kPatterns[] = {
    Pattern::kEmpty,     Pattern::kFull,       Pattern::kOneWeight, Pattern::kOneColumn,      Pattern::kQuads,
    Pattern::kEmptyRows, Pattern::kOneFullRow, Pattern::kUneven,    Pattern::kScatteredQuads, Pattern::kUnstructured};

// Whether the pattern keeps the weight in row j, column p of [n][k].
inline bool Keeps(Pattern pattern, int64_t j, int64_t p, int64_t n, int64_t k, Random& random) {
  switch (pattern) {
    case Pattern::kEmpty:
      return false;
    case Pattern::kFull:
      return true;
    case Pattern::kOneWeight:
      return j == n / 2 && p == k - 1;
    case Pattern::kOneColumn:
      return p == k / 3;
    case Pattern::kEmptyRows:
      return j % 3 == 1 && random.Int(0, 9) < 3;
    case Pattern::kOneFullRow:
      return j == n - 1;
    case Pattern::kUneven:  // row j has j quads, or as many as there are
      return p / 4 < j;
    case Pattern::kQuads: {
      Random quad(static_cast<uint64_t>(j * k + p / 4));
      return quad.Int(0, 9) < 2;
    }
    case Pattern::kScatteredQuads: {  // as kQuads, but the values of a quad lie far apart
      Random quad(static_cast<uint64_t>(j * k + p % std::max<int64_t>(k / 4, 1)));
      return quad.Int(0, 9) < 2;
    }
    case Pattern::kUnstructured:
      break;
  }
  return random.Int(0, 9) < 2;
}

inline void Thin(Pattern pattern, uint64_t seed, LinearCase& c) {
  Random random(seed);
  for (int64_t j = 0; j < c.n; ++j)
    for (int64_t p = 0; p < c.k; ++p)
      if (!Keeps(pattern, j, p, c.n, c.k, random)) c.w[static_cast<size_t>(j * c.k + p)] = 0;
}

inline std::vector<char> PackSparse(const LinearCase& c) {
  std::vector<char> packed(PackedBytesSpmmS8(c.n, c.k, c.w.data()));
  PackSpmmS8(c.n, c.k, c.w.data(), c.scale.data(), c.input_scale.empty() ? nullptr : c.input_scale.data(),
             packed.data(), packed.size());
  return packed;
}

inline const LinearOp kSparse = {
    SpmmS8, [](const void* packed, size_t bytes) { return InspectPackedSpmmS8(packed, bytes).kernel; }};

}  // namespace tersor::testing

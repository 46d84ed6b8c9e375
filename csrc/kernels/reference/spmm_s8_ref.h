// The definition of the sparse product. Read this first; every kernel equals it bit for bit. What follows the sums is
// the epilogue of linear_s8_ref.h.
#pragma once
#include <cstdint>

namespace tersor::reference {

// The non-zero quads of W [n][k] in the order of their rows: quad b is W[row][4 * column[b] .. + 3].
// c[m][n] = sum over the quads b of row n, over i < 4, of a[m][4 * column[b] + i] * quad[b][i]; a is zero from k on.
inline void SpmmS8(int64_t m, int64_t n, int64_t k, const uint8_t* a, int64_t lda, const int64_t* row_offsets,
                   const int64_t* column, const int8_t (*quad)[4], int32_t* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      int32_t acc = 0;
      for (int64_t b = row_offsets[j]; b < row_offsets[j + 1]; ++b)
        for (int64_t p = 0; p < 4; ++p)
          if (4 * column[b] + p < k) acc += int32_t{a[i * lda + 4 * column[b] + p]} * int32_t{quad[b][p]};
      c[i * ldc + j] = acc;
    }
}

}  // namespace tersor::reference

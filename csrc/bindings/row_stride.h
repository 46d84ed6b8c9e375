// Leading dimensions as rows.
#pragma once
#include <cstdint>

namespace tersor {

// The stride from row to row when all leading dimensions are one dimension of rows; -1 when they are not.
inline int64_t RowStride(const int64_t* sizes, const int64_t* strides, int64_t dim) {
  const int64_t columns = sizes[dim - 1];
  if (columns > 1 && strides[dim - 1] != 1) return -1;
  int64_t row = columns, expected = -1;
  for (int64_t i = dim - 1; i-- > 0;) {
    if (sizes[i] == 1) continue;
    if (expected >= 0 && strides[i] != expected) return -1;
    if (expected < 0) row = strides[i];
    expected = strides[i] * sizes[i];
  }
  return row;
}

}  // namespace tersor

// The part of kernel_api.h that is about embedding rows, under its rules.
#pragma once
#include "kernels/kernel_api.h"

namespace tersor {

// A row of n values: int8, or two in a byte: value i plus 8 in the low half of byte i, value (n + 1) / 2 + i plus 8 in
// its high half.
struct EmbeddingRow {
  const uint8_t* data;
  float scale;
  bool halves;
};

struct EmbeddingKernel {
  const char* id;                                              // embedding_<isa>
  void (*copy)(int64_t n, const EmbeddingRow& row, float* y);  // y = fl(value * scale)
  void (*add)(int64_t n, const EmbeddingRow& row, float factor, bool weighted,
              float* y);                                      // y = fl(y + fl(copy * factor))
  void (*max)(int64_t n, const EmbeddingRow& row, float* y);  // y = copy > y ? copy : y
};

}  // namespace tersor

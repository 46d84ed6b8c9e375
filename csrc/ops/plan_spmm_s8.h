// How a sparse weight is packed: in which form, and which rows form a group.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/kernel_api.h"

namespace tersor {

enum class SparseFormS8 : uint64_t {
  kQuads,    // 4 neighbouring values of k
  kOrdered,  // the same after the values of a block of k changed places, so that non-zeros meet in quads
  kColumns,  // 4 values of k of any place
};

// The blocks of k, of equal depth but the last one.
struct BlocksSpmmS8 {
  int64_t depth, count;
  BlocksSpmmS8(const SpmmS8Kernel& kernel, int64_t k);
};

// What one row of a group does in one step: the quad, and the places of its values in the block. In the forms of quads
// only the first place counts, a multiple of 4.
struct RowStepSpmmS8 {
  int8_t quad[4];
  uint16_t place[4];
};

// row [live]: one row of W in one block. columns [depth]: which value of k is at a place; null for kQuads.
std::vector<RowStepSpmmS8> RowStepsSpmmS8(SparseFormS8 form, const int8_t* row, int64_t live, const uint16_t* columns,
                                          int64_t depth);

struct PlanSpmmS8 {
  SparseFormS8 form = SparseFormS8::kQuads;
  int64_t quads = 0;               // of neighbouring values that hold a non-zero
  std::vector<uint16_t> columns;   // [blocks][depth], but for kQuads
  std::vector<int64_t> starts{0};  // [blocks * groups + 1]
  std::vector<uint8_t> order;      // [blocks][n_pad]
};
PlanSpmmS8 MakePlanSpmmS8(const SpmmS8Kernel& kernel, int64_t n, int64_t n_pad, int64_t k, const int8_t* weight);

}  // namespace tersor

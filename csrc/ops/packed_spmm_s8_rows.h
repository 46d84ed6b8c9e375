// The form for few rows of a sparse packed weight, a section at the end of its block:
//
//   header | starts i64 [groups + 1] | masks u64 [groups][blocks][rows] | values i8 [nnz + slack]
//
// A group is `rows` weight rows, a block 64 values of k. The slack, as much as a group's masks could ever count, is
// what keeps a damaged mask inside.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/kernel_api.h"

namespace tersor {

struct PackedHeaderSpmmS8Rows {
  uint64_t bytes;
  int64_t nnz;
  char kernel_id[112];  // zero padded
};
static_assert(sizeof(PackedHeaderSpmmS8Rows) == 128, "two cache lines");

struct PackedViewSpmmS8Rows {
  const SpmmS8RowsKernel* kernel;  // null: there is no section, or none that this CPU can run
  int64_t groups, blocks;
  int64_t* starts;
  uint64_t* masks;
  int8_t* values;
};

// Whether m rows go faster through masks than through strips. In half cycles of a Zen 4 core, a mask takes 7 for one
// row of x and 3 for each further one, a quad in a strip 5.
inline bool RowsPaySpmmS8(int64_t m, int64_t masks, int64_t quads) { return masks * (4 + 3 * m) <= quads * 5; }

// The kernel that a weight gets the section for, or null: there is none, or there are no more than 2 quads to a mask,
// and one row of x would gain too little for the bytes.
const SpmmS8RowsKernel* RowsKernelFor(int64_t n, int64_t k, int64_t quads);

// Bytes of the section; 0 without a kernel.
size_t BytesSpmmS8Rows(const SpmmS8RowsKernel* kernel, int64_t n, int64_t k, const int8_t* weight);
// Into zeros.
void PackSpmmS8Rows(const SpmmS8RowsKernel& kernel, int64_t n, int64_t k, const int8_t* weight, void* section,
                    size_t bytes);
// Throws Error when the section is damaged: `starts` then never leads outside of it.
PackedViewSpmmS8Rows ViewSpmmS8Rows(const void* section, size_t bytes, int64_t n, int64_t k);

}  // namespace tersor

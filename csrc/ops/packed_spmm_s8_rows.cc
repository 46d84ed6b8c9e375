#include "ops/packed_spmm_s8_rows.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/registry.h"
#include "core/scratch.h"
#include "tersor/error.h"

namespace tersor {
namespace {

constexpr int64_t kBlock = 64;  // bits of a mask

struct Layout {
  int64_t groups, blocks;
  size_t starts_at, masks_at, values_at, total;
};

Layout LayoutOf(const SpmmS8RowsKernel& kernel, int64_t n, int64_t k, int64_t nnz) {
  Layout layout;
  layout.groups = (n + kernel.rows - 1) / kernel.rows;
  layout.blocks = (k + kBlock - 1) / kBlock;
  const int64_t masks = layout.blocks * kernel.rows, slack = masks * kBlock + kBlock;
  layout.starts_at = sizeof(PackedHeaderSpmmS8Rows);
  layout.masks_at = layout.starts_at + Scratch::Padded<int64_t>(static_cast<size_t>(layout.groups) + 1);
  layout.values_at = layout.masks_at + Scratch::Padded<uint64_t>(static_cast<size_t>(layout.groups * masks));
  layout.total = layout.values_at + Scratch::Padded<int8_t>(static_cast<size_t>(nnz + slack));
  return layout;
}

const SpmmS8RowsKernel* FindKernel(const char* id) {
  for (const KernelSet* set : RunnableKernelSets())
    if (set->spmm_s8_rows != nullptr && std::strcmp(set->spmm_s8_rows->id, id) == 0) return set->spmm_s8_rows;
  return nullptr;
}

PackedViewSpmmS8Rows MakeView(const SpmmS8RowsKernel& kernel, const Layout& layout, const void* section) {
  char* base = const_cast<char*>(static_cast<const char*>(section));
  return {&kernel,
          layout.groups,
          layout.blocks,
          reinterpret_cast<int64_t*>(base + layout.starts_at),
          reinterpret_cast<uint64_t*>(base + layout.masks_at),
          reinterpret_cast<int8_t*>(base + layout.values_at)};
}

// The mask of one block of one row, whose non-zeros go to `values`, which moves on.
uint64_t PackBlock(const int8_t* w, int64_t live, int8_t** values) {
  uint64_t mask = 0;
  for (int64_t p = 0; p < live; ++p) {
    if (w[p] == 0) continue;
    mask |= uint64_t{1} << p;
    *(*values)++ = w[p];
  }
  return mask;
}

}  // namespace

const SpmmS8RowsKernel* RowsKernelFor(int64_t n, int64_t k, int64_t quads) {
  return quads > 2 * n * ((k + kBlock - 1) / kBlock) ? Selected().spmm_s8_rows : nullptr;
}

size_t BytesSpmmS8Rows(const SpmmS8RowsKernel* kernel, int64_t n, int64_t k, const int8_t* weight) {
  if (kernel == nullptr) return 0;
  return LayoutOf(*kernel, n, k, n * k - std::count(weight, weight + n * k, int8_t{0})).total;
}

void PackSpmmS8Rows(const SpmmS8RowsKernel& kernel, int64_t n, int64_t k, const int8_t* weight, void* section,
                    size_t bytes) {
  PackedHeaderSpmmS8Rows& header = *static_cast<PackedHeaderSpmmS8Rows*>(section);
  header.bytes = bytes;
  header.nnz = n * k - std::count(weight, weight + n * k, int8_t{0});
  std::memcpy(header.kernel_id, kernel.id, std::strlen(kernel.id));
  const PackedViewSpmmS8Rows view = MakeView(kernel, LayoutOf(kernel, n, k, header.nnz), section);
  int8_t* values = view.values;
  for (int64_t group = 0; group < view.groups; ++group) {
    view.starts[group] = values - view.values;
    for (int64_t block = 0; block < view.blocks; ++block)
      for (int64_t r = 0; r < kernel.rows; ++r) {
        const int64_t row = group * kernel.rows + r, p = block * kBlock;
        if (row >= n) continue;
        view.masks[(group * view.blocks + block) * kernel.rows + r] =
            PackBlock(weight + row * k + p, std::min(kBlock, k - p), &values);
      }
  }
  view.starts[view.groups] = values - view.values;
}

PackedViewSpmmS8Rows ViewSpmmS8Rows(const void* section, size_t bytes, int64_t n, int64_t k) {
  if (bytes == 0) return {};
  const auto fail = [] { throw Error("packed sparse int8 weight: its form for few rows is damaged; pack it again"); };
  if (bytes < sizeof(PackedHeaderSpmmS8Rows)) fail();
  const PackedHeaderSpmmS8Rows& header = *static_cast<const PackedHeaderSpmmS8Rows*>(section);
  if (header.bytes != bytes || header.kernel_id[sizeof header.kernel_id - 1] != '\0') fail();
  const SpmmS8RowsKernel* kernel = FindKernel(header.kernel_id);
  if (kernel == nullptr) return {};
  if (header.nnz < 0 || static_cast<uint64_t>(header.nnz) > bytes) fail();
  const Layout layout = LayoutOf(*kernel, n, k, header.nnz);
  if (layout.total != bytes) fail();
  const PackedViewSpmmS8Rows view = MakeView(*kernel, layout, section);
  bool sound = view.starts[0] == 0 && view.starts[view.groups] == header.nnz;
  for (int64_t g = 0; g < view.groups; ++g) sound &= view.starts[g] <= view.starts[g + 1];
  if (!sound) fail();
  return view;
}

}  // namespace tersor

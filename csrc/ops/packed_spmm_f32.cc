#include "ops/packed_spmm_f32.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "core/registry.h"
#include "core/scratch.h"
#include "ops/packed_s8.h"
#include "tersor/spmm_f32.h"

namespace tersor {
namespace {

constexpr char kMagic[8] = {'T', 'S', 'R', 'S', 'P', 'F', '1', '\0'};
constexpr int64_t kMaxExtent = int64_t{1} << 31;
constexpr int64_t kColumns = 16;  // n_pad is a multiple of this and of every kernel's rows

[[noreturn]] void Fail(const std::string& what) { throw Error("packed sparse float weight: " + what); }

const SpmmF32Kernel* FindKernel(const char* id) {
  for (const KernelSet* set : RunnableKernelSets())
    if (set->spmm_f32 != nullptr && std::strcmp(set->spmm_f32->id, id) == 0) return set->spmm_f32;
  return nullptr;
}

void CheckAddress(const void* packed) {
  if (reinterpret_cast<uintptr_t>(packed) % alignof(PackedHeaderSpmmF32) != 0)
    Fail("its address is not a multiple of " + std::to_string(alignof(PackedHeaderSpmmF32)));
}

void CheckExtents(int64_t n, int64_t k) {
  if (n <= 0 || k <= 0 || n >= kMaxExtent || k >= kMaxExtent)
    Fail("n and k must be in [1, 2^31), got n=" + std::to_string(n) + ", k=" + std::to_string(k));
}

const PackedHeaderSpmmF32& CheckedHeader(const void* packed, size_t packed_bytes) {
  if (packed == nullptr || packed_bytes < sizeof(PackedHeaderSpmmF32))
    Fail(std::to_string(packed_bytes) + " bytes are too few for its header");
  CheckAddress(packed);
  const PackedHeaderSpmmF32& header = *static_cast<const PackedHeaderSpmmF32*>(packed);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    Fail("these bytes are not one (or of another version of tersor); pack the weight again");
  // Sizes are bounded by the bytes that there are, so that no sum of them overflows.
  const int64_t bytes = static_cast<int64_t>(packed_bytes);
  const bool sizes = header.n > 0 && header.n < kMaxExtent && header.n <= bytes && header.k > 0 &&
                     header.k < kMaxExtent && header.steps >= 0 && header.steps <= bytes && header.nnz >= 0 &&
                     header.nnz <= bytes;
  if (header.bytes != packed_bytes || header.kernel_id[sizeof header.kernel_id - 1] != '\0' || !sizes)
    Fail("header says " + std::to_string(header.bytes) + " bytes, n=" + std::to_string(header.n) +
         ", k=" + std::to_string(header.k) + ", nnz=" + std::to_string(header.nnz) +
         ", steps=" + std::to_string(header.steps) + ", got " + std::to_string(packed_bytes) + " bytes");
  return header;
}

// Which rows form a group, and how many steps it has.
struct Plan {
  int64_t nnz = 0;
  std::vector<int64_t> starts{0};
  std::vector<uint8_t> order;  // [blocks][n_pad]
};

Plan MakePlan(const SpmmF32Kernel& kernel, int64_t n, int64_t k, const float* weight) {
  Plan plan;
  const PackedLayoutSpmmF32 layout = LayoutSpmmF32(kernel, n, k, 0);
  for (int64_t block = 0; block < layout.blocks; ++block)
    for (int64_t band = 0; band < layout.n_pad; band += kBandRowsF32) {
      const int64_t rows = std::min<int64_t>(kBandRowsF32, layout.n_pad - band);
      const int64_t begin = block * kernel.depth, end = std::min(begin + kernel.depth, k);
      int64_t counts[kBandRowsF32] = {};
      uint8_t order[kBandRowsF32];
      for (int64_t r = 0; r < rows; ++r) {
        order[r] = static_cast<uint8_t>(r);
        const float* row = weight + (band + r) * k;
        if (band + r < n) counts[r] = end - begin - std::count(row + begin, row + end, 0.0f);
        plan.nnz += counts[r];
      }
      std::stable_sort(order, order + rows, [&](uint8_t a, uint8_t b) { return counts[a] > counts[b]; });
      plan.order.insert(plan.order.end(), order, order + rows);
      for (int64_t r = 0; r < rows; r += kernel.rows) plan.starts.push_back(plan.starts.back() + counts[order[r]]);
    }
  return plan;
}

PackedViewSpmmF32 MakeView(const PackedHeaderSpmmF32& header, const SpmmF32Kernel& kernel) {
  PackedViewSpmmF32 view{};
  view.kernel = &kernel;
  view.n = header.n;
  view.k = header.k;
  view.nnz = header.nnz;
  view.steps = header.steps;
  view.layout = LayoutSpmmF32(kernel, header.n, header.k, header.steps);
  if (view.layout.total != header.bytes)
    Fail(std::to_string(view.layout.total) + " bytes needed, got " + std::to_string(header.bytes));
  char* base = const_cast<char*>(reinterpret_cast<const char*>(&header));
  view.starts = reinterpret_cast<int64_t*>(base + view.layout.starts_at);
  view.order = reinterpret_cast<uint8_t*>(base + view.layout.order_at);
  view.values = reinterpret_cast<float*>(base + view.layout.values_at);
  view.offsets = reinterpret_cast<uint16_t*>(base + view.layout.offsets_at);
  return view;
}

// Slot `slot` of the steps [first, last): the non-zeros of one row of one block (none for a null row), then filling.
void PackRow(const PackedViewSpmmF32& view, const float* row, int64_t block, int64_t slot, int64_t first,
             int64_t last) {
  const int64_t rows = view.kernel->rows, row_bytes = view.kernel->strip * 4;
  int64_t at = first * rows + slot;
  for (int64_t p = 0; row != nullptr && p < view.BlockDepth(block); ++p) {
    const float value = row[block * view.kernel->depth + p];
    if (value == 0.0f) continue;
    view.values[at] = value;
    view.offsets[at] = static_cast<uint16_t>(p * row_bytes);
    at += rows;
  }
  for (; at < last * rows; at += rows) {
    view.values[at] = -0.0f;
    view.offsets[at] = static_cast<uint16_t>(view.kernel->depth * row_bytes);
  }
}

// Calls use(row of W, block, slot, first step, last step) for each row of each group, padding included.
template <typename Use>
void ForEachSlot(const PackedViewSpmmF32& view, Use use) {
  const int64_t n_pad = view.layout.n_pad, rows = view.kernel->rows;
  for (int64_t block = 0; block < view.layout.blocks; ++block)
    for (int64_t i = 0; i < n_pad; ++i) {
      const int64_t row = i / kBandRowsF32 * kBandRowsF32 + view.order[block * n_pad + i];
      const int64_t* starts = view.starts + block * view.layout.groups + i / rows;
      use(row, block, i % rows, starts[0], starts[1]);
    }
}

}  // namespace

PackedLayoutSpmmF32 LayoutSpmmF32(const SpmmF32Kernel& kernel, int64_t n, int64_t k, int64_t steps) {
  PackedLayoutSpmmF32 layout;
  layout.n_pad = RoundUp(n, kColumns);
  layout.blocks = (k + kernel.depth - 1) / kernel.depth;
  layout.bands = (layout.n_pad + kBandRowsF32 - 1) / kBandRowsF32;
  layout.groups = layout.n_pad / kernel.rows;
  const size_t columns = static_cast<size_t>(layout.n_pad), blocks = static_cast<size_t>(layout.blocks);
  const size_t slots = static_cast<size_t>(steps * kernel.rows);
  layout.starts_at = sizeof(PackedHeaderSpmmF32);
  layout.order_at = layout.starts_at + Scratch::Padded<int64_t>(blocks * static_cast<size_t>(layout.groups) + 1);
  layout.values_at = layout.order_at + Scratch::Padded<uint8_t>(blocks * columns);
  layout.offsets_at = layout.values_at + Scratch::Padded<float>(slots);
  layout.total = layout.offsets_at + Scratch::Padded<uint16_t>(slots);
  return layout;
}

int32_t PackedViewSpmmF32::BlockDepth(int64_t block) const {
  return static_cast<int32_t>(std::min<int64_t>(kernel->depth, k - block * kernel->depth));
}

int32_t PackedViewSpmmF32::BandRows(int64_t band) const {
  return static_cast<int32_t>(std::min<int64_t>(kBandRowsF32, layout.n_pad - band * kBandRowsF32));
}

SpmmF32BandArgs PackedViewSpmmF32::Band(int64_t block, int64_t band) const {
  SpmmF32BandArgs args{};
  args.groups = BandRows(band) / kernel->rows;
  args.starts = starts + block * layout.groups + band * (kBandRowsF32 / kernel->rows);
  args.values = values;
  args.offsets = offsets;
  args.order = order + block * layout.n_pad + band * kBandRowsF32;
  return args;
}

PackedViewSpmmF32 ViewPackedSpmmF32(const void* packed, size_t packed_bytes) {
  const PackedHeaderSpmmF32& header = CheckedHeader(packed, packed_bytes);
  const SpmmF32Kernel* kernel = FindKernel(header.kernel_id);
  if (kernel == nullptr)
    Fail(std::string("packed for kernel ") + header.kernel_id +
         ", which this CPU cannot run; pack the weight again on this host");
  const PackedViewSpmmF32 view = MakeView(header, *kernel);
  const int64_t groups = view.layout.blocks * view.layout.groups;
  bool sound = view.starts[0] == 0 && view.starts[groups] == view.steps;
  for (int64_t g = 0; g < groups; ++g) sound &= view.starts[g] <= view.starts[g + 1];
  // A row of a band that is not whole stays inside it too: sums are as many as the band's padded rows.
  for (int64_t block = 0; block < view.layout.blocks; ++block)
    for (int64_t band = 0; band < view.layout.bands; ++band) {
      const uint8_t* order = view.order + block * view.layout.n_pad + band * kBandRowsF32;
      const uint8_t highest = *std::max_element(order, order + view.BandRows(band));
      sound &= highest < view.BandRows(band);
    }
  if (!sound) Fail("its index is damaged; pack the weight again");
  return view;
}

size_t PackedBytesSpmmF32(int64_t n, int64_t k, const float* weight) {
  CheckExtents(n, k);
  const SpmmF32Kernel& kernel = *Selected().spmm_f32;
  return LayoutSpmmF32(kernel, n, k, MakePlan(kernel, n, k, weight).starts.back()).total;
}

void PackSpmmF32(int64_t n, int64_t k, const float* weight, void* packed, size_t packed_bytes) {
  CheckExtents(n, k);
  const SpmmF32Kernel& kernel = *Selected().spmm_f32;
  const Plan plan = MakePlan(kernel, n, k, weight);
  const PackedLayoutSpmmF32 layout = LayoutSpmmF32(kernel, n, k, plan.starts.back());
  if (packed_bytes != layout.total)
    Fail(std::to_string(layout.total) + " bytes needed, got " + std::to_string(packed_bytes));
  CheckAddress(packed);
  std::memset(packed, 0, packed_bytes);
  PackedHeaderSpmmF32& header = *static_cast<PackedHeaderSpmmF32*>(packed);
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  std::memcpy(header.kernel_id, kernel.id, std::strlen(kernel.id));
  header.bytes = packed_bytes;
  header.n = n;
  header.k = k;
  header.nnz = plan.nnz;
  header.steps = plan.starts.back();
  const PackedViewSpmmF32 view = MakeView(header, kernel);
  std::copy(plan.starts.begin(), plan.starts.end(), view.starts);
  std::copy(plan.order.begin(), plan.order.end(), view.order);
  ForEachSlot(view, [&](int64_t row, int64_t block, int64_t slot, int64_t first, int64_t last) {
    PackRow(view, row < n ? weight + row * k : nullptr, block, slot, first, last);
  });
}

void UnpackSpmmF32(const void* packed, size_t packed_bytes, float* weight) {
  const PackedViewSpmmF32 view = ViewPackedSpmmF32(packed, packed_bytes);
  std::fill_n(weight, view.n * view.k, 0.0f);
  const int64_t rows = view.kernel->rows, row_bytes = view.kernel->strip * 4;
  ForEachSlot(view, [&](int64_t row, int64_t block, int64_t slot, int64_t first, int64_t last) {
    for (int64_t at = first * rows + slot; at < last * rows; at += rows) {
      if (view.values[at] == 0.0f) continue;
      const int64_t p = view.offsets[at] / row_bytes;
      if (row >= view.n || view.offsets[at] % row_bytes != 0 || p >= view.BlockDepth(block))
        Fail("its index is damaged; pack the weight again");
      weight[row * view.k + block * view.kernel->depth + p] = view.values[at];
    }
  });
}

PackedInfoSpmmF32 InspectPackedSpmmF32(const void* packed, size_t packed_bytes) {
  const PackedHeaderSpmmF32& header = CheckedHeader(packed, packed_bytes);
  return {header.n, header.k, header.nnz, header.kernel_id, FindKernel(header.kernel_id) != nullptr};
}

}  // namespace tersor

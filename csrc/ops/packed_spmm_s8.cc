#include "ops/packed_spmm_s8.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/registry.h"
#include "core/scratch.h"
#include "ops/packed_s8.h"
#include "tersor/spmm_s8.h"

namespace tersor {
namespace {

constexpr char kMagic[8] = {'T', 'S', 'R', 'S', 'P', '8', '1', '\0'};
constexpr int64_t kMaxExtent = int64_t{1} << 31;
constexpr int64_t kColumns = 16;  // n_pad is a multiple of this and of every kernel's rows

[[noreturn]] void Fail(const std::string& what) { throw Error("packed sparse int8 weight: " + what); }

const SpmmS8Kernel* FindKernel(const char* id) {
  for (const KernelSet* set : RunnableKernelSets())
    if (set->spmm_s8 != nullptr && std::strcmp(set->spmm_s8->id, id) == 0) return set->spmm_s8;
  return nullptr;
}

void CheckAddress(const void* packed) {
  if (reinterpret_cast<uintptr_t>(packed) % alignof(PackedHeaderSpmmS8) != 0)
    Fail("its address is not a multiple of " + std::to_string(alignof(PackedHeaderSpmmS8)));
}

const PackedHeaderSpmmS8& CheckedHeader(const void* packed, size_t packed_bytes) {
  if (packed == nullptr || packed_bytes < sizeof(PackedHeaderSpmmS8))
    Fail(std::to_string(packed_bytes) + " bytes are too few for its header");
  CheckAddress(packed);
  const PackedHeaderSpmmS8& header = *static_cast<const PackedHeaderSpmmS8*>(packed);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    Fail("these bytes are not one (or of another version of tersor); pack the weight again");
  // Sizes are bounded by the bytes that there are, so that no sum of them overflows.
  const int64_t bytes = static_cast<int64_t>(packed_bytes);
  const bool sizes = header.n > 0 && header.n < kMaxExtent && header.n <= bytes && header.k > 0 &&
                     header.k <= kMaxDepthS8 && header.steps >= 0 && header.steps <= bytes && header.quads >= 0 &&
                     header.quads <= bytes && header.smoothed <= 1;
  if (header.bytes != packed_bytes || header.kernel_id[sizeof header.kernel_id - 1] != '\0' || !sizes)
    Fail("header says " + std::to_string(header.bytes) + " bytes, n=" + std::to_string(header.n) +
         ", k=" + std::to_string(header.k) + ", quads=" + std::to_string(header.quads) +
         ", steps=" + std::to_string(header.steps) + ", got " + std::to_string(packed_bytes) + " bytes");
  return header;
}

void CheckExtents(int64_t n, int64_t k) {
  if (n <= 0 || k <= 0 || n >= kMaxExtent || k > kMaxDepthS8)
    Fail("n must be in [1, 2^31) and k in [1, " + std::to_string(kMaxDepthS8) + "], got n=" + std::to_string(n) +
         ", k=" + std::to_string(k));
}

void CheckValues(int64_t n, int64_t k, const int8_t* weight, const float* scale, const float* input_scale) {
  const auto check = [](const char* name, int64_t count, const float* values) {
    for (int64_t i = 0; i < count; ++i)
      if (!(values[i] > 0.0f) || !std::isfinite(values[i]))
        Fail(std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(values[i]) +
             "; scales are finite and greater than 0");
  };
  check("scale", n, scale);
  if (input_scale != nullptr) check("input_scale", k, input_scale);
  if (std::find(weight, weight + n * k, int8_t{-128}) != weight + n * k) Fail("found -128; weights lie in [-127, 127]");
}

bool IsZero(const int8_t* quad, int64_t live) {
  int any = 0;
  for (int64_t i = 0; i < live; ++i) any |= quad[i];
  return any == 0;
}

// Calls use(column of W) for each quad of the row that begins in [begin, end) and holds a non-zero.
template <typename Use>
void ForEachQuad(const int8_t* row, int64_t k, int64_t begin, int64_t end, Use use) {
  for (int64_t p = begin; p < std::min(end, k); p += 4)
    if (!IsZero(row + p, std::min<int64_t>(4, k - p))) use(p);
}

// Which rows form a group, and how many steps it has.
struct Plan {
  int64_t quads = 0;
  std::vector<int64_t> starts{0};
  std::vector<uint8_t> order;  // [blocks][n_pad]
};

Plan MakePlan(const SpmmS8Kernel& kernel, int64_t n, int64_t k, const int8_t* weight) {
  Plan plan;
  const PackedLayoutSpmmS8 layout = LayoutSpmmS8(kernel, n, k, 0);
  for (int64_t block = 0; block < layout.blocks; ++block)
    for (int64_t band = 0; band < layout.n_pad; band += kBandRowsS8) {
      const int64_t rows = std::min<int64_t>(kBandRowsS8, layout.n_pad - band);
      int64_t counts[kBandRowsS8] = {};
      uint8_t order[kBandRowsS8];
      for (int64_t r = 0; r < rows; ++r) {
        order[r] = static_cast<uint8_t>(r);
        const int64_t begin = block * kernel.depth;
        if (band + r < n)
          ForEachQuad(weight + (band + r) * k, k, begin, begin + kernel.depth, [&](int64_t) { ++counts[r]; });
        plan.quads += counts[r];
      }
      std::stable_sort(order, order + rows, [&](uint8_t a, uint8_t b) { return counts[a] > counts[b]; });
      plan.order.insert(plan.order.end(), order, order + rows);
      for (int64_t r = 0; r < rows; r += kernel.rows) plan.starts.push_back(plan.starts.back() + counts[order[r]]);
    }
  return plan;
}

PackedViewSpmmS8 MakeView(const PackedHeaderSpmmS8& header, const SpmmS8Kernel& kernel) {
  PackedViewSpmmS8 view{};
  view.kernel = &kernel;
  view.n = header.n;
  view.k = header.k;
  view.quads_count = header.quads;
  view.steps = header.steps;
  view.layout = LayoutSpmmS8(kernel, header.n, header.k, header.steps);
  if (view.layout.total != header.bytes)
    Fail(std::to_string(view.layout.total) + " bytes needed, got " + std::to_string(header.bytes));
  char* base = const_cast<char*>(reinterpret_cast<const char*>(&header));
  if (header.smoothed != 0) view.input_scale = reinterpret_cast<float*>(base + view.layout.input_scale_at);
  view.scale = reinterpret_cast<float*>(base + view.layout.scale_at);
  view.col_sum = reinterpret_cast<int32_t*>(base + view.layout.col_sum_at);
  view.starts = reinterpret_cast<int64_t*>(base + view.layout.starts_at);
  view.order = reinterpret_cast<uint8_t*>(base + view.layout.order_at);
  view.quads = reinterpret_cast<int8_t*>(base + view.layout.quads_at);
  view.offsets = reinterpret_cast<uint16_t*>(base + view.layout.offsets_at);
  return view;
}

// Slot `slot` of a group that has `steps` steps from `first` on: the quads of one row of one block, then zeros.
void PackRow(const PackedViewSpmmS8& view, const int8_t* row, int64_t block, int64_t slot, int64_t first) {
  const int64_t rows = view.kernel->rows, begin = block * view.kernel->depth;
  ForEachQuad(row, view.k, begin, begin + view.kernel->depth, [&](int64_t p) {
    const int64_t at = first++ * rows + slot;
    std::memcpy(view.quads + at * 4, row + p, static_cast<size_t>(std::min<int64_t>(4, view.k - p)));
    view.offsets[at] = static_cast<uint16_t>((p - begin) * view.kernel->strip);
  });
}

}  // namespace

PackedLayoutSpmmS8 LayoutSpmmS8(const SpmmS8Kernel& kernel, int64_t n, int64_t k, int64_t steps) {
  PackedLayoutSpmmS8 layout;
  layout.n_pad = RoundUp(n, kColumns);
  layout.blocks = (k + kernel.depth - 1) / kernel.depth;
  layout.bands = (layout.n_pad + kBandRowsS8 - 1) / kBandRowsS8;
  layout.groups = layout.n_pad / kernel.rows;
  const size_t columns = static_cast<size_t>(layout.n_pad), blocks = static_cast<size_t>(layout.blocks);
  const size_t slots = static_cast<size_t>(steps * kernel.rows);
  layout.input_scale_at = sizeof(PackedHeaderSpmmS8);
  layout.scale_at = layout.input_scale_at + Scratch::Padded<float>(static_cast<size_t>(k));
  layout.col_sum_at = layout.scale_at + Scratch::Padded<float>(columns);
  layout.starts_at = layout.col_sum_at + Scratch::Padded<int32_t>(columns);
  layout.order_at = layout.starts_at + Scratch::Padded<int64_t>(blocks * static_cast<size_t>(layout.groups) + 1);
  layout.quads_at = layout.order_at + Scratch::Padded<uint8_t>(blocks * columns);
  layout.offsets_at = layout.quads_at + Scratch::Padded<int32_t>(slots);
  layout.total = layout.offsets_at + Scratch::Padded<uint16_t>(slots);
  return layout;
}

int32_t PackedViewSpmmS8::BlockDepth(int64_t block) const {
  return static_cast<int32_t>(std::min<int64_t>(kernel->depth, k - block * kernel->depth));
}

int32_t PackedViewSpmmS8::BandRows(int64_t band) const {
  return static_cast<int32_t>(std::min<int64_t>(kBandRowsS8, layout.n_pad - band * kBandRowsS8));
}

SpmmS8Args PackedViewSpmmS8::Band(int64_t block, int64_t band) const {
  SpmmS8Args args{};
  args.groups = BandRows(band) / kernel->rows;
  args.starts = starts + block * layout.groups + band * (kBandRowsS8 / kernel->rows);
  args.quads = quads;
  args.offsets = offsets;
  args.order = order + block * layout.n_pad + band * kBandRowsS8;
  args.add = block > 0;
  return args;
}

PackedViewSpmmS8 ViewPackedSpmmS8(const void* packed, size_t packed_bytes) {
  const PackedHeaderSpmmS8& header = CheckedHeader(packed, packed_bytes);
  const SpmmS8Kernel* kernel = FindKernel(header.kernel_id);
  if (kernel == nullptr)
    Fail(std::string("packed for kernel ") + header.kernel_id +
         ", which this CPU cannot run; pack the weight again on this host");
  const PackedViewSpmmS8 view = MakeView(header, *kernel);
  const int64_t groups = view.layout.blocks * view.layout.groups;
  bool sound = view.starts[0] == 0 && view.starts[groups] == view.steps;
  for (int64_t g = 0; g < groups; ++g) sound &= view.starts[g] <= view.starts[g + 1];
  uint8_t highest = 0;
  for (int64_t i = 0; i < view.layout.blocks * view.layout.n_pad; ++i) highest = std::max(highest, view.order[i]);
  if (!sound || highest >= kBandRowsS8) Fail("its index is damaged; pack the weight again");
  return view;
}

size_t PackedBytesSpmmS8(int64_t n, int64_t k, const int8_t* weight) {
  CheckExtents(n, k);
  const SpmmS8Kernel& kernel = *Selected().spmm_s8;
  return LayoutSpmmS8(kernel, n, k, MakePlan(kernel, n, k, weight).starts.back()).total;
}

void PackSpmmS8(int64_t n, int64_t k, const int8_t* weight, const float* scale, const float* input_scale, void* packed,
                size_t packed_bytes) {
  CheckExtents(n, k);
  CheckValues(n, k, weight, scale, input_scale);
  const SpmmS8Kernel& kernel = *Selected().spmm_s8;
  const Plan plan = MakePlan(kernel, n, k, weight);
  const PackedLayoutSpmmS8 layout = LayoutSpmmS8(kernel, n, k, plan.starts.back());
  if (packed_bytes != layout.total)
    Fail(std::to_string(layout.total) + " bytes needed, got " + std::to_string(packed_bytes));
  CheckAddress(packed);
  std::memset(packed, 0, packed_bytes);
  PackedHeaderSpmmS8& header = *static_cast<PackedHeaderSpmmS8*>(packed);
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  std::memcpy(header.kernel_id, kernel.id, std::strlen(kernel.id));
  header.bytes = packed_bytes;
  header.n = n;
  header.k = k;
  header.quads = plan.quads;
  header.steps = plan.starts.back();
  header.smoothed = input_scale != nullptr;
  const PackedViewSpmmS8 view = MakeView(header, kernel);
  if (input_scale != nullptr) std::copy_n(input_scale, k, const_cast<float*>(view.input_scale));
  std::copy_n(scale, n, view.scale);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t p = 0; p < k; ++p) view.col_sum[j] += weight[j * k + p];
  std::copy(plan.starts.begin(), plan.starts.end(), view.starts);
  std::copy(plan.order.begin(), plan.order.end(), view.order);
  for (int64_t block = 0; block < layout.blocks; ++block)
    for (int64_t i = 0; i < layout.n_pad; ++i) {
      const int64_t row = i / kBandRowsS8 * kBandRowsS8 + view.order[block * layout.n_pad + i];
      const int64_t first = view.starts[block * layout.groups + i / kernel.rows];
      if (row < n) PackRow(view, weight + row * k, block, i % kernel.rows, first);
    }
}

void UnpackSpmmS8(const void* packed, size_t packed_bytes, int8_t* weight, float* scale) {
  const PackedViewSpmmS8 view = ViewPackedSpmmS8(packed, packed_bytes);
  std::copy_n(view.scale, view.n, scale);
  std::memset(weight, 0, static_cast<size_t>(view.n * view.k));
  const int64_t rows = view.kernel->rows;
  for (int64_t block = 0; block < view.layout.blocks; ++block)
    for (int64_t i = 0; i < view.layout.n_pad; ++i) {
      const int64_t row = i / kBandRowsS8 * kBandRowsS8 + view.order[block * view.layout.n_pad + i];
      const int64_t* starts = view.starts + block * view.layout.groups + i / rows;
      for (int64_t at = starts[0] * rows + i % rows; at < starts[1] * rows; at += rows) {
        const int64_t p = view.offsets[at] / view.kernel->strip + block * view.kernel->depth;
        if (IsZero(view.quads + at * 4, 4)) continue;
        if (row >= view.n || p % 4 != 0 || p >= view.k) Fail("its index is damaged; pack the weight again");
        std::memcpy(weight + row * view.k + p, view.quads + at * 4,
                    static_cast<size_t>(std::min<int64_t>(4, view.k - p)));
      }
    }
}

const float* InputScaleSpmmS8(const void* packed, size_t packed_bytes) {
  return ViewPackedSpmmS8(packed, packed_bytes).input_scale;
}

PackedInfoSpmmS8 InspectPackedSpmmS8(const void* packed, size_t packed_bytes) {
  const PackedHeaderSpmmS8& header = CheckedHeader(packed, packed_bytes);
  return {header.n, header.k, header.quads, header.kernel_id, FindKernel(header.kernel_id) != nullptr};
}

}  // namespace tersor

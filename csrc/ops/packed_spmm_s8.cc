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

constexpr char kMagic[8] = {'T', 'S', 'R', 'S', 'P', '8', '2', '\0'};
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
                     header.quads <= bytes && header.smoothed <= 1 && header.rows_bytes <= packed_bytes &&
                     header.form <= static_cast<uint64_t>(SparseFormS8::kColumns);
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

PackedViewSpmmS8 MakeView(const PackedHeaderSpmmS8& header, const SpmmS8Kernel& kernel) {
  PackedViewSpmmS8 view{};
  view.kernel = &kernel;
  view.n = header.n;
  view.k = header.k;
  view.quads_count = header.quads;
  view.steps = header.steps;
  view.form = static_cast<SparseFormS8>(header.form);
  if (view.form != SparseFormS8::kQuads && kernel.arrange == nullptr)
    Fail(std::string("kernel ") + kernel.id + " has only the form of quads; pack the weight again");
  view.layout = LayoutSpmmS8(kernel, view.form, header.n, header.k, header.steps);
  if (view.layout.total + header.rows_bytes != header.bytes)
    Fail(std::to_string(view.layout.total + header.rows_bytes) + " bytes needed, got " + std::to_string(header.bytes));
  char* base = const_cast<char*>(reinterpret_cast<const char*>(&header));
  if (header.smoothed != 0) view.input_scale = reinterpret_cast<float*>(base + view.layout.input_scale_at);
  view.scale = reinterpret_cast<float*>(base + view.layout.scale_at);
  view.col_sum = reinterpret_cast<int32_t*>(base + view.layout.col_sum_at);
  view.starts = reinterpret_cast<int64_t*>(base + view.layout.starts_at);
  view.order = reinterpret_cast<uint8_t*>(base + view.layout.order_at);
  if (view.form != SparseFormS8::kQuads) view.columns = reinterpret_cast<uint16_t*>(base + view.layout.columns_at);
  view.quads = reinterpret_cast<int8_t*>(base + view.layout.quads_at);
  view.offsets = reinterpret_cast<uint16_t*>(base + view.layout.offsets_at);
  return view;
}

int64_t OffsetsPerQuad(SparseFormS8 form) { return form == SparseFormS8::kColumns ? 4 : 1; }

// Of a panel, between the places 4 apart (quads) or neighbouring ones (columns).
int64_t RecordBytes(const PackedViewSpmmS8& view) {
  return view.form == SparseFormS8::kColumns ? view.kernel->column_bytes : view.kernel->quad_bytes;
}

// Calls use(row, block, first, end) for each row of each block: its steps are `first`, first + rows, ... < end, as
// indices of quads.
template <typename Use>
void ForEachRow(const PackedViewSpmmS8& view, Use use) {
  const int64_t rows = view.kernel->rows;
  for (int64_t block = 0; block < view.layout.blocks; ++block)
    for (int64_t i = 0; i < view.layout.n_pad; ++i) {
      const int64_t row = i / kBandRowsS8 * kBandRowsS8 + view.order[block * view.layout.n_pad + i];
      const int64_t* starts = view.starts + block * view.layout.groups + i / rows;
      use(row, block, starts[0] * rows + i % rows, starts[1] * rows);
    }
}

const uint16_t* ColumnsOf(const PackedViewSpmmS8& view, int64_t block) {
  return view.columns == nullptr ? nullptr : view.columns + block * view.layout.depth;
}

void PackQuads(const PackedViewSpmmS8& view, const int8_t* weight) {
  const int64_t each = OffsetsPerQuad(view.form), bytes = RecordBytes(view), depth = view.layout.depth;
  const int64_t rows = view.kernel->rows;
  bool back = true;
  ForEachRow(view, [&](int64_t row, int64_t block, int64_t at, int64_t end) {
    // Every other group goes through the panel from its end: what the last one read last is in the cache.
    if (at % rows == 0) back = !back;
    if (row >= view.n) return;
    if (back) at += (end - 1 - at) / rows * rows;
    for (const RowStepSpmmS8& step : RowStepsSpmmS8(view.form, weight + row * view.k + block * depth,
                                                    view.BlockDepth(block), ColumnsOf(view, block), depth)) {
      std::memcpy(view.quads + at * 4, step.quad, 4);
      for (int64_t i = 0; i < each; ++i)
        view.offsets[at * each + i] = static_cast<uint16_t>(step.place[i] / (each == 1 ? 4 : 1) * bytes);
      at += back ? -rows : rows;
    }
  });
}

// The value of k, within its block, that weight i of a quad belongs to; -1 when the offset is damaged.
int64_t ValueOf(const PackedViewSpmmS8& view, int64_t block, int64_t quad, int64_t i) {
  const int64_t each = OffsetsPerQuad(view.form), bytes = RecordBytes(view);
  const int64_t offset = view.offsets[each == 1 ? quad : quad * each + i];
  if (offset % bytes != 0) return -1;
  const int64_t place = each == 1 ? offset / bytes * 4 + i : offset / bytes;
  if (place >= view.layout.depth) return -1;
  const uint16_t* columns = ColumnsOf(view, block);
  const int64_t p = columns == nullptr ? place : columns[place];
  return p < view.BlockDepth(block) ? p : -1;
}

bool SoundIndex(const PackedViewSpmmS8& view) {
  const int64_t groups = view.layout.blocks * view.layout.groups;
  bool sound = view.starts[0] == 0 && view.starts[groups] == view.steps;
  for (int64_t g = 0; g < groups; ++g) sound &= view.starts[g] <= view.starts[g + 1];
  uint8_t highest = 0;
  for (int64_t i = 0; i < view.layout.blocks * view.layout.n_pad; ++i) highest = std::max(highest, view.order[i]);
  uint16_t furthest = 0;
  for (int64_t i = 0; view.columns != nullptr && i < view.layout.blocks * view.layout.depth; ++i)
    furthest = std::max(furthest, view.columns[i]);
  return sound && highest < kBandRowsS8 && furthest < view.layout.depth;
}

}  // namespace

PackedLayoutSpmmS8 LayoutSpmmS8(const SpmmS8Kernel& kernel, SparseFormS8 form, int64_t n, int64_t k, int64_t steps) {
  PackedLayoutSpmmS8 layout;
  const BlocksSpmmS8 split(kernel, k);
  layout.n_pad = RoundUp(n, kColumns);
  layout.blocks = split.count;
  layout.depth = split.depth;
  layout.bands = (layout.n_pad + kBandRowsS8 - 1) / kBandRowsS8;
  layout.groups = layout.n_pad / kernel.rows;
  const size_t columns = static_cast<size_t>(layout.n_pad), blocks = static_cast<size_t>(layout.blocks);
  const size_t slots = static_cast<size_t>(steps * kernel.rows);
  layout.input_scale_at = sizeof(PackedHeaderSpmmS8);
  layout.scale_at = layout.input_scale_at + Scratch::Padded<float>(static_cast<size_t>(k));
  layout.col_sum_at = layout.scale_at + Scratch::Padded<float>(columns);
  layout.starts_at = layout.col_sum_at + Scratch::Padded<int32_t>(columns);
  layout.order_at = layout.starts_at + Scratch::Padded<int64_t>(blocks * static_cast<size_t>(layout.groups) + 1);
  layout.columns_at = layout.order_at + Scratch::Padded<uint8_t>(blocks * columns);
  layout.quads_at = layout.columns_at;
  if (form != SparseFormS8::kQuads)
    layout.quads_at += Scratch::Padded<uint16_t>(blocks * static_cast<size_t>(layout.depth));
  layout.offsets_at = layout.quads_at + Scratch::Padded<int32_t>(slots);
  layout.total = layout.offsets_at + Scratch::Padded<uint16_t>(slots * static_cast<size_t>(OffsetsPerQuad(form)));
  return layout;
}

int32_t PackedViewSpmmS8::BlockDepth(int64_t block) const {
  return static_cast<int32_t>(std::min<int64_t>(layout.depth, k - block * layout.depth));
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
  args.col_scale = scale + band * kBandRowsS8;
  args.col_sum = col_sum + band * kBandRowsS8;
  args.add = block > 0;
  return args;
}

void PackedViewSpmmS8::PackPanel(int64_t block, int64_t tokens, const uint8_t* a, int64_t lda, uint8_t* packed,
                                 uint8_t* panel) const {
  const bool arranged = form != SparseFormS8::kQuads;
  kernel->pack(static_cast<int32_t>(RoundUp(tokens, 16)), BlockDepth(block), a, lda, arranged ? packed : panel);
  if (arranged)
    kernel->arrange(static_cast<int32_t>(layout.depth), ColumnsOf(*this, block), form == SparseFormS8::kOrdered, packed,
                    panel);
}

void PackedViewSpmmS8::Multiply(const SpmmS8Args& args) const {
  (form == SparseFormS8::kColumns ? kernel->multiply_columns : kernel->multiply)(args);
}

PackedViewSpmmS8 ViewPackedSpmmS8(const void* packed, size_t packed_bytes) {
  const PackedHeaderSpmmS8& header = CheckedHeader(packed, packed_bytes);
  const SpmmS8Kernel* kernel = FindKernel(header.kernel_id);
  if (kernel == nullptr)
    Fail(std::string("packed for kernel ") + header.kernel_id +
         ", which this CPU cannot run; pack the weight again on this host");
  PackedViewSpmmS8 view = MakeView(header, *kernel);
  if (!SoundIndex(view)) Fail("its index is damaged; pack the weight again");
  const char* section = static_cast<const char*>(packed) + view.layout.total;
  view.rows = ViewSpmmS8Rows(section, header.rows_bytes, header.n, header.k);
  return view;
}

size_t PackedBytesSpmmS8(int64_t n, int64_t k, const int8_t* weight) {
  CheckExtents(n, k);
  const SpmmS8Kernel& kernel = *Selected().spmm_s8;
  const PlanSpmmS8 plan = MakePlanSpmmS8(kernel, n, RoundUp(n, kColumns), k, weight);
  return LayoutSpmmS8(kernel, plan.form, n, k, plan.starts.back()).total +
         BytesSpmmS8Rows(RowsKernelFor(n, k, plan.quads), n, k, weight);
}

void PackSpmmS8(int64_t n, int64_t k, const int8_t* weight, const float* scale, const float* input_scale, void* packed,
                size_t packed_bytes) {
  CheckExtents(n, k);
  CheckValues(n, k, weight, scale, input_scale);
  const SpmmS8Kernel& kernel = *Selected().spmm_s8;
  const PlanSpmmS8 plan = MakePlanSpmmS8(kernel, n, RoundUp(n, kColumns), k, weight);
  const PackedLayoutSpmmS8 layout = LayoutSpmmS8(kernel, plan.form, n, k, plan.starts.back());
  const SpmmS8RowsKernel* rows_kernel = RowsKernelFor(n, k, plan.quads);
  const size_t rows_bytes = BytesSpmmS8Rows(rows_kernel, n, k, weight), bytes = layout.total + rows_bytes;
  if (packed_bytes != bytes) Fail(std::to_string(bytes) + " bytes needed, got " + std::to_string(packed_bytes));
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
  header.rows_bytes = rows_bytes;
  header.form = static_cast<uint64_t>(plan.form);
  const PackedViewSpmmS8 view = MakeView(header, kernel);
  if (input_scale != nullptr) std::copy_n(input_scale, k, const_cast<float*>(view.input_scale));
  std::copy_n(scale, n, view.scale);
  if (rows_kernel != nullptr)
    PackSpmmS8Rows(*rows_kernel, n, k, weight, static_cast<char*>(packed) + layout.total, rows_bytes);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t p = 0; p < k; ++p) view.col_sum[j] += weight[j * k + p];
  std::copy(plan.starts.begin(), plan.starts.end(), view.starts);
  std::copy(plan.order.begin(), plan.order.end(), view.order);
  std::copy(plan.columns.begin(), plan.columns.end(), view.columns);
  PackQuads(view, weight);
}

void UnpackSpmmS8(const void* packed, size_t packed_bytes, int8_t* weight, float* scale) {
  const PackedViewSpmmS8 view = ViewPackedSpmmS8(packed, packed_bytes);
  std::copy_n(view.scale, view.n, scale);
  std::memset(weight, 0, static_cast<size_t>(view.n * view.k));
  ForEachRow(view, [&](int64_t row, int64_t block, int64_t at, int64_t end) {
    for (; at < end; at += view.kernel->rows)
      for (int64_t i = 0; i < 4; ++i) {
        if (view.quads[at * 4 + i] == 0) continue;
        const int64_t p = ValueOf(view, block, at, i);
        if (row >= view.n || p < 0) Fail("its index is damaged; pack the weight again");
        weight[row * view.k + block * view.layout.depth + p] = view.quads[at * 4 + i];
      }
  });
}

const float* InputScaleSpmmS8(const void* packed, size_t packed_bytes) {
  return ViewPackedSpmmS8(packed, packed_bytes).input_scale;
}

PackedInfoSpmmS8 InspectPackedSpmmS8(const void* packed, size_t packed_bytes) {
  const PackedHeaderSpmmS8& header = CheckedHeader(packed, packed_bytes);
  static constexpr const char* kForms[] = {"quads", "ordered quads", "columns"};
  return {
      header.n, header.k, header.quads, kForms[header.form], header.kernel_id, FindKernel(header.kernel_id) != nullptr};
}

}  // namespace tersor

#include "ops/packed_s8.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "core/huge_pages.h"
#include "core/registry.h"
#include "core/scratch.h"
#include "tersor/linear_s8.h"

namespace tersor {
namespace {

constexpr char kMagic[8] = {'T', 'S', 'R', 'S', '8', 'v', '1', '\0'};
constexpr int64_t kMaxExtent = int64_t{1} << 31;

const GemmS8Kernel* FindKernel(const char* id) {
  const GemmS8Kernel* active = Selected().gemm_s8;
  if (std::strcmp(active->id, id) == 0) return active;
  for (const KernelSet* set : RunnableKernelSets())
    if (set->gemm_s8 != nullptr && std::strcmp(set->gemm_s8->id, id) == 0) return set->gemm_s8;
  return nullptr;
}

void CheckAddress(const void* packed) {
  if (reinterpret_cast<uintptr_t>(packed) % alignof(PackedHeaderS8) != 0)
    throw Error("packed int8 weight: its address is not a multiple of " + std::to_string(alignof(PackedHeaderS8)));
}

const PackedHeaderS8& CheckedHeader(const void* packed, size_t packed_bytes) {
  if (packed == nullptr || packed_bytes < sizeof(PackedHeaderS8))
    throw Error("packed int8 weight: " + std::to_string(packed_bytes) + " bytes are too few for its header");
  CheckAddress(packed);
  const PackedHeaderS8& header = *static_cast<const PackedHeaderS8*>(packed);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    throw Error("packed int8 weight: these bytes are not one (or of another version of tersor); pack the weight again");
  if (header.bytes != packed_bytes || header.kernel_id[sizeof header.kernel_id - 1] != '\0' || header.n <= 0 ||
      header.n >= kMaxExtent || header.k <= 0 || header.k >= kMaxExtent || header.smoothed > 1)
    throw Error("packed int8 weight: header says " + std::to_string(header.bytes) +
                " bytes, n=" + std::to_string(header.n) + ", k=" + std::to_string(header.k) +
                ", smoothed=" + std::to_string(header.smoothed) + ", got " + std::to_string(packed_bytes) + " bytes");
  return header;
}

void CheckExtents(int64_t n, int64_t k) {
  if (n <= 0 || k <= 0 || n >= kMaxExtent || k >= kMaxExtent)
    throw Error("packed int8 weight: n and k must be in [1, 2^31), got n=" + std::to_string(n) +
                ", k=" + std::to_string(k));
}

void CheckRows(const PackedViewS8& view, int64_t row_begin, int64_t rows) {
  const bool in_range = row_begin >= 0 && rows >= 0 && row_begin <= view.n && rows <= view.n - row_begin;
  const bool aligned = row_begin % kPackRowsS8 == 0 && (rows % kPackRowsS8 == 0 || row_begin + rows == view.n);
  if (!in_range || !aligned)
    throw Error("packed int8 weight: rows [" + std::to_string(row_begin) + ", " + std::to_string(row_begin + rows) +
                ") of " + std::to_string(view.n) + "; blocks start at multiples of " + std::to_string(kPackRowsS8));
}

void CheckRowValues(int64_t rows, int64_t k, const int8_t* weight, const float* scale) {
  for (int64_t i = 0; i < rows; ++i) {
    if (!(scale[i] > 0.0f) || !std::isfinite(scale[i]))
      throw Error("packed int8 weight: scale of row " + std::to_string(i) + " is " + std::to_string(scale[i]) +
                  "; scales are finite and greater than 0");
  }
  if (std::find(weight, weight + rows * k, int8_t{-128}) != weight + rows * k)
    throw Error("packed int8 weight: found -128; weights lie in [-127, 127]");
}

}  // namespace

PackedLayoutS8 LayoutS8(const GemmS8Kernel& kernel, int64_t n, int64_t k) {
  PackedLayoutS8 layout;
  layout.n_pad = RoundUp(n, kernel.nr);
  layout.chunks = (k + kMaxDepthS8 - 1) / kMaxDepthS8;
  const size_t columns = static_cast<size_t>(layout.n_pad), chunks = static_cast<size_t>(layout.chunks);
  layout.input_scale_at = sizeof(PackedHeaderS8);
  layout.scale_at = layout.input_scale_at + Scratch::Padded<float>(static_cast<size_t>(k));
  layout.col_sum_at = layout.scale_at + Scratch::Padded<float>(columns);
  layout.panels_at = layout.col_sum_at + Scratch::Padded<int32_t>(chunks * columns);
  const size_t panels = columns / static_cast<size_t>(kernel.nr);
  const int64_t tail = k - (layout.chunks - 1) * kMaxDepthS8;
  layout.total = layout.panels_at + panels * ((chunks - 1) * kernel.panel_bytes(static_cast<int32_t>(kMaxDepthS8)) +
                                              kernel.panel_bytes(static_cast<int32_t>(tail)));
  return layout;
}

int32_t PackedViewS8::ChunkDepth(int64_t chunk) const {
  return static_cast<int32_t>(std::min(kMaxDepthS8, k - chunk * kMaxDepthS8));
}

const char* PackedViewS8::Panel(int64_t chunk, int64_t panel) const {
  const size_t per_chunk = static_cast<size_t>(layout.n_pad / kernel->nr);
  const size_t full = kernel->panel_bytes(static_cast<int32_t>(kMaxDepthS8));
  return panels + static_cast<size_t>(chunk) * per_chunk * full +
         static_cast<size_t>(panel) * kernel->panel_bytes(ChunkDepth(chunk));
}

PackedViewS8 ViewPackedS8(const void* packed, size_t packed_bytes) {
  const PackedHeaderS8& header = CheckedHeader(packed, packed_bytes);
  const GemmS8Kernel* kernel = FindKernel(header.kernel_id);
  if (kernel == nullptr)
    throw Error(std::string("packed int8 weight: packed for kernel ") + header.kernel_id +
                ", which this CPU cannot run; pack the weight again on this host");
  PackedViewS8 view{kernel,  header.n, header.k, LayoutS8(*kernel, header.n, header.k),
                    nullptr, nullptr,  nullptr,  nullptr};
  if (view.layout.total != packed_bytes)
    throw Error("packed int8 weight: " + std::to_string(view.layout.total) + " bytes needed, got " +
                std::to_string(packed_bytes));
  char* base = const_cast<char*>(static_cast<const char*>(packed));
  if (header.smoothed != 0) view.input_scale = reinterpret_cast<float*>(base + view.layout.input_scale_at);
  view.scale = reinterpret_cast<float*>(base + view.layout.scale_at);
  view.col_sum = reinterpret_cast<int32_t*>(base + view.layout.col_sum_at);
  view.panels = base + view.layout.panels_at;
  return view;
}

size_t PackedBytesS8(int64_t n, int64_t k) {
  CheckExtents(n, k);
  return LayoutS8(*Selected().gemm_s8, n, k).total;
}

void PackBeginS8(int64_t n, int64_t k, void* packed, size_t packed_bytes) {
  const size_t needed = PackedBytesS8(n, k);
  if (packed_bytes != needed)
    throw Error("packed int8 weight: " + std::to_string(needed) + " bytes needed, got " + std::to_string(packed_bytes));
  CheckAddress(packed);
  AdviseHugePages(packed, packed_bytes);
  std::memset(packed, 0, LayoutS8(*Selected().gemm_s8, n, k).panels_at);
  PackedHeaderS8& header = *static_cast<PackedHeaderS8*>(packed);
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.bytes = needed;
  header.n = n;
  header.k = k;
  std::strncpy(header.kernel_id, Selected().gemm_s8->id, sizeof header.kernel_id - 1);
}

void SetInputScaleS8(const float* input_scale, void* packed, size_t packed_bytes) {
  const PackedViewS8 view = ViewPackedS8(packed, packed_bytes);
  for (int64_t i = 0; input_scale != nullptr && i < view.k; ++i) {
    if (!(input_scale[i] > 0.0f) || !std::isfinite(input_scale[i]))
      throw Error("packed int8 weight: input scale of column " + std::to_string(i) + " is " +
                  std::to_string(input_scale[i]) + "; input scales are finite and greater than 0");
  }
  float* values = reinterpret_cast<float*>(static_cast<char*>(packed) + view.layout.input_scale_at);
  if (input_scale == nullptr)
    std::fill_n(values, view.k, 0.0f);  // equal weights have equal bytes
  else
    std::copy_n(input_scale, view.k, values);
  static_cast<PackedHeaderS8*>(packed)->smoothed = input_scale != nullptr;
}

const float* InputScaleS8(const void* packed, size_t packed_bytes) {
  return ViewPackedS8(packed, packed_bytes).input_scale;
}

void PackRowsS8(int64_t row_begin, int64_t rows, const int8_t* weight, const float* scale, void* packed,
                size_t packed_bytes) {
  const PackedViewS8 view = ViewPackedS8(packed, packed_bytes);
  CheckRows(view, row_begin, rows);
  CheckRowValues(rows, view.k, weight, scale);
  std::copy(scale, scale + rows, view.scale + row_begin);
  const int64_t nr = view.kernel->nr;
  for (int64_t chunk = 0; chunk < view.layout.chunks; ++chunk) {
    const int32_t depth = view.ChunkDepth(chunk);
    const int8_t* part = weight + chunk * kMaxDepthS8;
    for (int64_t i = 0; i < rows; ++i) {
      int32_t sum = 0;
      for (int32_t p = 0; p < depth; ++p) sum += part[i * view.k + p];
      view.col_sum[chunk * view.layout.n_pad + row_begin + i] = sum;
    }
    for (int64_t j = 0; j < rows; j += nr)
      view.kernel->pack_panel(static_cast<int32_t>(std::min(nr, rows - j)), depth, part + j * view.k, view.k,
                              const_cast<char*>(view.Panel(chunk, (row_begin + j) / nr)));
  }
}

void UnpackRowsS8(int64_t row_begin, int64_t rows, const void* packed, size_t packed_bytes, int8_t* weight,
                  float* scale) {
  const PackedViewS8 view = ViewPackedS8(packed, packed_bytes);
  CheckRows(view, row_begin, rows);
  std::copy(view.scale + row_begin, view.scale + row_begin + rows, scale);
  const int64_t nr = view.kernel->nr;
  for (int64_t chunk = 0; chunk < view.layout.chunks; ++chunk)
    for (int64_t j = 0; j < rows; j += nr)
      view.kernel->unpack_panel(static_cast<int32_t>(std::min(nr, rows - j)), view.ChunkDepth(chunk),
                                view.Panel(chunk, (row_begin + j) / nr), weight + j * view.k + chunk * kMaxDepthS8,
                                view.k);
}

PackedShapeS8 ShapeOfPackedS8(const void* packed, size_t packed_bytes) {
  const PackedHeaderS8& header = CheckedHeader(packed, packed_bytes);
  return {header.n, header.k};
}

PackedInfoS8 InspectPackedS8(const void* packed, size_t packed_bytes) {
  const PackedHeaderS8& header = CheckedHeader(packed, packed_bytes);
  return {header.n, header.k, header.kernel_id, FindKernel(header.kernel_id) != nullptr};
}

}  // namespace tersor

#include "ops/packed_lowrank_f32.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/huge_pages.h"
#include "core/registry.h"
#include "core/scratch.h"
#include "tersor/lowrank.h"

namespace tersor {
namespace {

constexpr char kMagic[8] = {'T', 'S', 'R', 'L', 'R', 'F', '1', '\0'};
constexpr int64_t kMaxExtent = int64_t{1} << 31;

[[noreturn]] void Fail(const std::string& what) { throw Error("packed low-rank float weight: " + what); }

const GemmF32Kernel* FindKernel(const char* id) {
  for (const KernelSet* set : RunnableKernelSets())
    if (set->gemm_f32 != nullptr && std::strcmp(set->gemm_f32->id, id) == 0) return set->gemm_f32;
  return nullptr;
}

bool IsExtent(int64_t extent) { return extent > 0 && extent < kMaxExtent; }

void CheckExtents(int64_t n, int64_t k, int64_t rank) {
  if (!IsExtent(n) || !IsExtent(k) || !IsExtent(rank) || rank > std::min(n, k))
    Fail("n and k must be in [1, 2^31) and rank in [1, min(n, k)], got n=" + std::to_string(n) +
         ", k=" + std::to_string(k) + ", rank=" + std::to_string(rank));
}

void CheckAddress(const void* packed) {
  if (reinterpret_cast<uintptr_t>(packed) % alignof(PackedHeaderLowRankF32) != 0)
    Fail("its address is not a multiple of " + std::to_string(alignof(PackedHeaderLowRankF32)));
}

const PackedHeaderLowRankF32& CheckedHeader(const void* packed, size_t packed_bytes) {
  if (packed == nullptr || packed_bytes < sizeof(PackedHeaderLowRankF32))
    Fail(std::to_string(packed_bytes) + " bytes are too few for its header");
  CheckAddress(packed);
  const PackedHeaderLowRankF32& header = *static_cast<const PackedHeaderLowRankF32*>(packed);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    Fail("these bytes are not one (or of another version of tersor); pack the weight again");
  if (header.bytes != packed_bytes || header.kernel_id[sizeof header.kernel_id - 1] != '\0' || !IsExtent(header.n) ||
      !IsExtent(header.k) || !IsExtent(header.rank) || header.rank > std::min(header.n, header.k))
    Fail("header says " + std::to_string(header.bytes) + " bytes, n=" + std::to_string(header.n) +
         ", k=" + std::to_string(header.k) + ", rank=" + std::to_string(header.rank) + ", got " +
         std::to_string(packed_bytes) + " bytes");
  return header;
}

PackedViewLowRankF32 MakeView(const GemmF32Kernel& kernel, int64_t n, int64_t k, int64_t rank, const void* base) {
  PackedViewLowRankF32 view{&kernel, n, k, rank, nullptr, nullptr, 0};
  const size_t nr = static_cast<size_t>(kernel.nr), down_at = sizeof(PackedHeaderLowRankF32);
  const size_t up_at =
      down_at + Scratch::Padded<float>(static_cast<size_t>(view.down_panels()) * static_cast<size_t>(k) * nr);
  view.total = up_at + Scratch::Padded<float>(static_cast<size_t>(view.up_panels()) * static_cast<size_t>(rank) * nr);
  if (base == nullptr) return view;
  char* bytes = const_cast<char*>(static_cast<const char*>(base));
  view.down = reinterpret_cast<float*>(bytes + down_at);
  view.up = reinterpret_cast<float*>(bytes + up_at);
  return view;
}

// w [n][k] to panels [.][k][nr], and back.
void PackPanels(int64_t n, int64_t k, int64_t nr, const float* w, float* panels) {
  for (int64_t j = 0; j < n; ++j) {
    float* to = panels + j / nr * nr * k + j % nr;
    for (int64_t p = 0; p < k; ++p) to[p * nr] = w[j * k + p];
  }
}

void UnpackPanels(int64_t n, int64_t k, int64_t nr, const float* panels, float* w) {
  for (int64_t j = 0; j < n; ++j) {
    const float* from = panels + j / nr * nr * k + j % nr;
    for (int64_t p = 0; p < k; ++p) w[j * k + p] = from[p * nr];
  }
}

}  // namespace

PackedViewLowRankF32 ViewPackedLowRankF32(const void* packed, size_t packed_bytes) {
  const PackedHeaderLowRankF32& header = CheckedHeader(packed, packed_bytes);
  const GemmF32Kernel* kernel = FindKernel(header.kernel_id);
  if (kernel == nullptr)
    Fail(std::string("packed for kernel ") + header.kernel_id +
         ", which this CPU cannot run; pack the weight again on this host");
  const PackedViewLowRankF32 view = MakeView(*kernel, header.n, header.k, header.rank, packed);
  if (view.total != packed_bytes)
    Fail(std::to_string(view.total) + " bytes needed, got " + std::to_string(packed_bytes));
  return view;
}

size_t PackedBytesLowRankF32(int64_t n, int64_t k, int64_t rank) {
  CheckExtents(n, k, rank);
  return MakeView(*Selected().gemm_f32, n, k, rank, nullptr).total;
}

void PackLowRankF32(int64_t n, int64_t k, int64_t rank, const float* down, const float* up, void* packed,
                    size_t packed_bytes) {
  const size_t needed = PackedBytesLowRankF32(n, k, rank);
  if (packed_bytes != needed) Fail(std::to_string(needed) + " bytes needed, got " + std::to_string(packed_bytes));
  CheckAddress(packed);
  AdviseHugePages(packed, packed_bytes);
  std::memset(packed, 0, packed_bytes);
  const GemmF32Kernel& kernel = *Selected().gemm_f32;
  PackedHeaderLowRankF32& header = *static_cast<PackedHeaderLowRankF32*>(packed);
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  std::strncpy(header.kernel_id, kernel.id, sizeof header.kernel_id - 1);
  header.bytes = needed;
  header.n = n;
  header.k = k;
  header.rank = rank;
  const PackedViewLowRankF32 view = MakeView(kernel, n, k, rank, packed);
  PackPanels(rank, k, kernel.nr, down, view.down);
  PackPanels(n, rank, kernel.nr, up, view.up);
}

void UnpackLowRankF32(const void* packed, size_t packed_bytes, float* down, float* up) {
  const PackedViewLowRankF32 view = ViewPackedLowRankF32(packed, packed_bytes);
  UnpackPanels(view.rank, view.k, view.kernel->nr, view.down, down);
  UnpackPanels(view.n, view.rank, view.kernel->nr, view.up, up);
}

PackedInfoLowRank InspectPackedLowRankF32(const void* packed, size_t packed_bytes) {
  const PackedHeaderLowRankF32& header = CheckedHeader(packed, packed_bytes);
  return {header.n, header.k, header.rank, false, header.kernel_id, FindKernel(header.kernel_id) != nullptr};
}

}  // namespace tersor

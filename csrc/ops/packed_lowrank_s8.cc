#include "ops/packed_lowrank_s8.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/scratch.h"
#include "tersor/lowrank.h"

namespace tersor {
namespace {

constexpr char kMagic[8] = {'T', 'S', 'R', 'L', 'R', 'S', '1', '\0'};
constexpr int64_t kMaxExtent = int64_t{1} << 31;

[[noreturn]] void Fail(const std::string& what) { throw Error("packed low-rank int8 weight: " + what); }

// Each part begins at a cache line.
size_t Padded(size_t bytes) { return Scratch::Padded<char>(bytes); }

bool AreExtents(int64_t n, int64_t k, int64_t rank) {
  return n > 0 && n < kMaxExtent && k > 0 && k <= kMaxDepthS8 && rank > 0 && rank <= std::min(n, k);
}

void CheckExtents(int64_t n, int64_t k, int64_t rank) {
  if (!AreExtents(n, k, rank))
    Fail("n must be in [1, 2^31), k in [1, " + std::to_string(kMaxDepthS8) + "] and rank in [1, min(n, k)], got n=" +
         std::to_string(n) + ", k=" + std::to_string(k) + ", rank=" + std::to_string(rank));
}

void CheckAddress(const void* packed) {
  if (reinterpret_cast<uintptr_t>(packed) % alignof(PackedHeaderLowRankS8) != 0)
    Fail("its address is not a multiple of " + std::to_string(alignof(PackedHeaderLowRankS8)));
}

const PackedHeaderLowRankS8& CheckedHeader(const void* packed, size_t packed_bytes) {
  if (packed == nullptr || packed_bytes < sizeof(PackedHeaderLowRankS8))
    Fail(std::to_string(packed_bytes) + " bytes are too few for its header");
  CheckAddress(packed);
  const PackedHeaderLowRankS8& header = *static_cast<const PackedHeaderLowRankS8*>(packed);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    Fail("these bytes are not one (or of another version of tersor); pack the weight again");
  bool sound = header.bytes == packed_bytes && AreExtents(header.n, header.k, header.rank);
  uint64_t sum = sizeof header;
  for (const uint64_t part : {header.down_bytes, header.up_bytes, header.dense_bytes}) {
    sound = sound && part <= packed_bytes;  // so that their sum does not overflow
    sum += Padded(part);
  }
  if (!sound || sum != packed_bytes)
    Fail("header says " + std::to_string(header.bytes) + " bytes, n=" + std::to_string(header.n) +
         ", k=" + std::to_string(header.k) + ", rank=" + std::to_string(header.rank) + ", got " +
         std::to_string(packed_bytes) + " bytes");
  return header;
}

struct Parts {
  char *down, *up, *dense;
};

Parts PartsOf(const PackedHeaderLowRankS8& header) {
  char* down = const_cast<char*>(reinterpret_cast<const char*>(&header)) + sizeof header;
  char* up = down + Padded(header.down_bytes);
  return {down, up, up + Padded(header.up_bytes)};
}

PackedViewS8 ViewPart(const char* name, const char* part, uint64_t bytes, int64_t n, int64_t k, bool smoothed) {
  const PackedViewS8 view = ViewPackedS8(part, bytes);
  if (view.n != n || view.k != k || (view.input_scale != nullptr && !smoothed))
    Fail(std::string(name) + ": expected n=" + std::to_string(n) + ", k=" + std::to_string(k) +
         (smoothed ? "" : " without an input scale") + ", got n=" + std::to_string(view.n) +
         ", k=" + std::to_string(view.k));
  return view;
}

void PackPart(int64_t n, int64_t k, const int8_t* weight, const float* scale, char* part, size_t bytes) {
  PackBeginS8(n, k, part, bytes);
  std::memset(part + bytes, 0, Padded(bytes) - bytes);
  PackRowsS8(0, n, weight, scale, part, bytes);
}

}  // namespace

PackedViewLowRankS8 ViewPackedLowRankS8(const void* packed, size_t packed_bytes) {
  const PackedHeaderLowRankS8& header = CheckedHeader(packed, packed_bytes);
  const Parts parts = PartsOf(header);
  PackedViewLowRankS8 view{};
  view.n = header.n;
  view.k = header.k;
  view.rank = header.rank;
  view.has_dense = header.dense_bytes > 0;
  view.down = ViewPart("down", parts.down, header.down_bytes, header.rank, header.k, true);
  view.up = ViewPart("up", parts.up, header.up_bytes, header.n, header.rank, false);
  if (view.has_dense) view.dense = ViewPart("dense", parts.dense, header.dense_bytes, header.n, header.k, false);
  view.kernel = view.down.kernel;
  if (view.up.kernel != view.kernel || (view.has_dense && view.dense.kernel != view.kernel))
    Fail("its parts are packed for different kernels; pack the weight again");
  return view;
}

size_t PackedBytesLowRankS8(int64_t n, int64_t k, int64_t rank, bool dense) {
  CheckExtents(n, k, rank);
  return sizeof(PackedHeaderLowRankS8) + Padded(PackedBytesS8(rank, k)) + Padded(PackedBytesS8(n, rank)) +
         (dense ? Padded(PackedBytesS8(n, k)) : 0);
}

void PackLowRankS8(const LowRankWeightS8& weight, void* packed, size_t packed_bytes) {
  const int64_t n = weight.n, k = weight.k, rank = weight.rank;
  const bool dense = weight.dense != nullptr;
  const size_t needed = PackedBytesLowRankS8(n, k, rank, dense);
  if (packed_bytes != needed) Fail(std::to_string(needed) + " bytes needed, got " + std::to_string(packed_bytes));
  CheckAddress(packed);
  PackedHeaderLowRankS8& header = *static_cast<PackedHeaderLowRankS8*>(packed);
  header = {};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.bytes = needed;
  header.n = n;
  header.k = k;
  header.rank = rank;
  header.down_bytes = PackedBytesS8(rank, k);
  header.up_bytes = PackedBytesS8(n, rank);
  header.dense_bytes = dense ? PackedBytesS8(n, k) : 0;
  const Parts parts = PartsOf(header);
  PackPart(rank, k, weight.down, weight.down_scale, parts.down, header.down_bytes);
  SetInputScaleS8(weight.input_scale, parts.down, header.down_bytes);
  PackPart(n, rank, weight.up, weight.up_scale, parts.up, header.up_bytes);
  if (dense) PackPart(n, k, weight.dense, weight.dense_scale, parts.dense, header.dense_bytes);
}

void UnpackLowRankS8(const void* packed, size_t packed_bytes, int8_t* down, float* down_scale, int8_t* up,
                     float* up_scale, int8_t* dense, float* dense_scale) {
  const PackedViewLowRankS8 view = ViewPackedLowRankS8(packed, packed_bytes);
  const PackedHeaderLowRankS8& header = CheckedHeader(packed, packed_bytes);
  const Parts parts = PartsOf(header);
  UnpackRowsS8(0, view.rank, parts.down, header.down_bytes, down, down_scale);
  UnpackRowsS8(0, view.n, parts.up, header.up_bytes, up, up_scale);
  if (view.has_dense) UnpackRowsS8(0, view.n, parts.dense, header.dense_bytes, dense, dense_scale);
}

const float* InputScaleLowRankS8(const void* packed, size_t packed_bytes) {
  return ViewPackedLowRankS8(packed, packed_bytes).down.input_scale;
}

PackedInfoLowRank InspectPackedLowRankS8(const void* packed, size_t packed_bytes) {
  const PackedHeaderLowRankS8& header = CheckedHeader(packed, packed_bytes);
  const PackedInfoS8 down = InspectPackedS8(PartsOf(header).down, header.down_bytes);
  return {header.n, header.k, header.rank, header.dense_bytes > 0, down.kernel, down.runnable};
}

}  // namespace tersor

// 2:4 sparse weights in the order of the sparse matrix instruction (docs/kernels.md, "CUDA layouts").
#include <cstring>
#include <string>

#include "cuda/pack_shape.h"
#include "tersor/cuda_pack.h"

namespace tersor::cuda {
namespace {

constexpr int kGroups = 16;  // of kept pairs: what a lane's registers and the metadata are numbered by

// Int8: a step is 64 of k. Group p of the instruction is lane p % 4's word p / 4 of the activations, so group
// 4 (p % 4) + p / 4 of the weight.
struct OrderS8 {
  using Value = int8_t;
  static constexpr int kDepth = 64, kStepsPerWord = 1, kGroupsPerRow = kGroups;
  static bool Zero(int8_t v) { return v == 0; }
  static int SourceGroup(int p) { return p % 4 * 4 + p / 4; }
  // Where the first of the pair of row r lies among the 512 values of a step: lane, then register, then byte.
  static int ValueAt(int r, int p) { return (r % 8 * 4 + p % 8 / 2) * 16 + (r / 8 + p / 8 * 2) * 4 + p % 2 * 2; }
  static int MetadataLane(int r, int p, int) { return r % 8 * 4 + r / 8 + p / 8 * 2; }
  static int MetadataShift(int, int p) { return p % 8 * 4; }
};

// Float16: a step is 32 of k, the order of k is left alone. Odd steps keep their metadata in the other pair of lanes.
struct OrderF16 {
  using Value = uint16_t;
  static constexpr int kDepth = 32, kStepsPerWord = 2, kGroupsPerRow = kGroups / 2;
  static bool Zero(uint16_t v) { return (v & 0x7fffu) == 0; }
  static int SourceGroup(int p) { return p; }
  static int ValueAt(int r, int p) { return (r % 8 * 4 + p % 4) * 8 + (r / 8 + p / 4 * 2) * 2; }
  static int MetadataLane(int r, int p, int step) { return r % 8 * 4 + p / 4 + step % 2 * 2; }
  static int MetadataShift(int r, int p) { return r / 8 * 16 + p % 4 * 4; }
};

struct Shape {
  int64_t tiles, steps, words;
};
template <typename Order>
Shape ShapeOf(int64_t n, int64_t k) {
  CheckPackShape(n, k);
  const int64_t steps = (k + Order::kDepth - 1) / Order::kDepth;
  return {(n + 15) / 16, steps, (steps + Order::kStepsPerWord - 1) / Order::kStepsPerWord};
}

template <typename Order>
Sparse24Bytes BytesOf(int64_t n, int64_t k) {
  const Shape s = ShapeOf<Order>(n, k);
  return {s.tiles * s.steps * 512, s.tiles * s.words * 128};
}

// Calls visit(row, first k of the group, index of the pair's first value, index of its metadata word, its shift) for
// every group, also those beyond n and k.
template <typename Order, typename Visit>
void ForEachGroup(const Shape& s, Visit visit) {
  for (int64_t tile = 0; tile < s.tiles; ++tile)
    for (int64_t step = 0; step < s.steps; ++step)
      for (int r = 0; r < 16; ++r)
        for (int p = 0; p < Order::kGroupsPerRow; ++p) {
          constexpr int kValues = 512 / static_cast<int>(sizeof(typename Order::Value));
          const int lane = Order::MetadataLane(r, p, static_cast<int>(step));
          visit(tile * 16 + r, step * Order::kDepth + Order::SourceGroup(p) * 4,
                (tile * s.steps + step) * kValues + Order::ValueAt(r, p),
                (tile * s.words + step / Order::kStepsPerWord) * 32 + lane, Order::MetadataShift(r, p));
        }
}

// The places of the kept values of a group, ascending; zeros fill up.
template <typename Order>
void ChoosePlaces(int64_t n, int64_t k, const typename Order::Value* w, int64_t row, int64_t begin, int (&place)[2]) {
  int kept = 0, free = -1;
  for (int i = 0; i < 4; ++i) {
    const bool zero = row >= n || begin + i >= k || Order::Zero(w[row * k + begin + i]);
    if (zero) {
      free = i;
      continue;
    }
    if (kept == 2)
      throw Error("not 2:4 sparse: row " + std::to_string(row) + " has more than 2 non-zeros in columns " +
                  std::to_string(begin) + " to " + std::to_string(begin + 3));
    place[kept++] = i;
  }
  if (kept == 2) return;
  if (kept == 0) {
    place[0] = 0, place[1] = 1;
    return;
  }
  const int one = place[0];
  place[0] = one < free ? one : free;
  place[1] = one < free ? free : one;
}

template <typename Order>
void Pack(int64_t n, int64_t k, const typename Order::Value* w, void* values, void* metadata) {
  using Value = typename Order::Value;
  const Shape s = ShapeOf<Order>(n, k);
  Value* to = static_cast<Value*>(values);
  uint32_t* words = static_cast<uint32_t*>(metadata);
  std::memset(metadata, 0, static_cast<size_t>(BytesOf<Order>(n, k).metadata));
  ForEachGroup<Order>(s, [&](int64_t row, int64_t begin, int64_t at, int64_t word, int shift) {
    int place[2];
    ChoosePlaces<Order>(n, k, w, row, begin, place);
    for (int i = 0; i < 2; ++i) {
      const bool inside = row < n && begin + place[i] < k;
      to[at + i] = inside ? w[row * k + begin + place[i]] : Value{0};
    }
    words[word] |= static_cast<uint32_t>(place[0] | place[1] << 2) << shift;
  });
}

template <typename Order>
void Unpack(int64_t n, int64_t k, const void* values, const void* metadata, typename Order::Value* w) {
  const Shape s = ShapeOf<Order>(n, k);
  std::memset(w, 0, static_cast<size_t>(n * k) * sizeof *w);
  const auto* from = static_cast<const typename Order::Value*>(values);
  const uint32_t* words = static_cast<const uint32_t*>(metadata);
  ForEachGroup<Order>(s, [&](int64_t row, int64_t begin, int64_t at, int64_t word, int shift) {
    for (int i = 0; i < 2; ++i) {
      const int64_t column = begin + (words[word] >> (shift + 2 * i) & 3u);
      if (row < n && column < k) w[row * k + column] = from[at + i];
    }
  });
}

}  // namespace

Sparse24Bytes PackedBytesSparse24S8(int64_t n, int64_t k) { return BytesOf<OrderS8>(n, k); }
void PackSparse24S8(int64_t n, int64_t k, const int8_t* w, void* values, void* metadata) {
  Pack<OrderS8>(n, k, w, values, metadata);
}
void UnpackSparse24S8(int64_t n, int64_t k, const void* values, const void* metadata, int8_t* w) {
  Unpack<OrderS8>(n, k, values, metadata, w);
}
Sparse24Bytes PackedBytesSparse24F16(int64_t n, int64_t k) { return BytesOf<OrderF16>(n, k); }
void PackSparse24F16(int64_t n, int64_t k, const uint16_t* w, void* values, void* metadata) {
  Pack<OrderF16>(n, k, w, values, metadata);
}
void UnpackSparse24F16(int64_t n, int64_t k, const void* values, const void* metadata, uint16_t* w) {
  Unpack<OrderF16>(n, k, values, metadata, w);
}

}  // namespace tersor::cuda

// Bitmaps, blocks and CSR from an int8 W, and CSR from a float one (docs/kernels.md, "CUDA layouts").
#include <cstring>

#include "cuda/pack_shape.h"
#include "tersor/cuda_pack.h"

namespace tersor::cuda {
namespace {

constexpr int kTileRows = 16, kLanes = 32;
constexpr int64_t kBitmapDepth = 64;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// W with zeros around it.
struct Padded {
  int64_t n, k;
  const int8_t* w;
  int8_t at(int64_t row, int64_t column) const { return row < n && column < k ? w[row * k + column] : int8_t{0}; }
};

// Weight i (of 32) of a lane in a tile of 16 rows by 64 of k: two operands of four words. Lane (g, q) has the columns
// from 16 q on of rows g and g + 8, as the activations of token g have.
struct Place {
  int row, column;
};
Place BitmapPlace(int lane, int i) {
  const int word = i / 4, operand = word / 4, half = word % 4 / 2;
  return {lane / 4 + 8 * (word % 2), lane % 4 * 16 + operand * 8 + half * 4 + i % 4};
}
// The same for the 16 weights of a lane in a block of 32 of k, columns from 8 q on.
Place BlockPlace(int lane, int i) {
  const int word = i / 4;
  return {lane / 4 + 8 * (word % 2), lane % 4 * 8 + word / 2 * 4 + i % 4};
}

// Calls visit(lane, i, value, row, column) for the weights of a tile in the order of the stream.
template <typename Visit>
void ForEachOfTile(const Padded& w, int64_t tile, int64_t step, Visit visit) {
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < 32; ++i) {
      const Place p = BitmapPlace(lane, i);
      const int64_t row = tile * kTileRows + p.row, column = step * kBitmapDepth + p.column;
      visit(lane, i, w.at(row, column), row, column);
    }
}

bool BlockIsZero(const Padded& w, int64_t tile, int64_t block) {
  for (int r = 0; r < kTileRows; ++r)
    for (int c = 0; c < kBlockDepthS8; ++c)
      if (w.at(tile * kTileRows + r, block * kBlockDepthS8 + c) != 0) return false;
  return true;
}

template <typename T>
int64_t CountNonZeros(int64_t n, int64_t k, const T* w) {
  CheckPackShape(n, k);
  int64_t count = 0;
  for (int64_t i = 0; i < n * k; ++i) count += w[i] != T{0};
  return count;
}

template <typename T>
void PackCsr(int64_t n, int64_t k, const T* w, T* values, int32_t* row_offsets, uint16_t* column_indices) {
  CheckPackShape(n, k);
  int32_t at = 0;
  for (int64_t row = 0; row < n; ++row) {
    row_offsets[row] = at;
    for (int64_t column = 0; column < k; ++column) {
      if (w[row * k + column] == T{0}) continue;
      values[at] = w[row * k + column];
      column_indices[at++] = static_cast<uint16_t>(column);
    }
  }
  row_offsets[n] = at;
}

}  // namespace

void ColumnSums(int64_t n, int64_t k, const int8_t* w, int32_t* col_sum) {
  CheckPackShape(n, k);
  for (int64_t row = 0; row < n; ++row) {
    col_sum[row] = 0;
    for (int64_t column = 0; column < k; ++column) col_sum[row] += w[row * k + column];
  }
}

BitmapBytes PackedBytesBitmapS8(int64_t n, int64_t k, const int8_t* w) {
  CheckPackShape(n, k);
  const int64_t tiles = CeilDiv(n, kTileRows), steps = CeilDiv(k, kBitmapDepth);
  int64_t chunks = 0;
  for (int64_t tile = 0; tile < tiles; ++tile)
    for (int64_t step = 0; step < steps; ++step) {
      int64_t count = 0;
      ForEachOfTile({n, k, w}, tile, step, [&](int, int, int8_t v, int64_t, int64_t) { count += v != 0; });
      chunks += CeilDiv(count, 16);
    }
  if (chunks > INT32_MAX) throw Error("a bitmap weight of more than 2^31 * 16 bytes");
  return {tiles * steps * kLanes * 4, chunks * 16, (tiles * steps + 1) * 4};
}

void PackBitmapS8(int64_t n, int64_t k, const int8_t* w, uint32_t* bitmap, int8_t* values, int32_t* offsets) {
  CheckPackShape(n, k);
  const int64_t tiles = CeilDiv(n, kTileRows), steps = CeilDiv(k, kBitmapDepth);
  int64_t at = 0;
  for (int64_t tile = 0; tile < tiles; ++tile)
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t index = tile * steps + step;
      offsets[index] = static_cast<int32_t>(at / 16);
      std::memset(bitmap + index * kLanes, 0, kLanes * 4);
      ForEachOfTile({n, k, w}, tile, step, [&](int lane, int i, int8_t v, int64_t, int64_t) {
        if (v == 0) return;
        bitmap[index * kLanes + lane] |= 1u << i;
        values[at++] = v;
      });
      while (at % 16 != 0) values[at++] = 0;
    }
  offsets[tiles * steps] = static_cast<int32_t>(at / 16);
}

void UnpackBitmapS8(int64_t n, int64_t k, const uint32_t* bitmap, const int8_t* values, const int32_t* offsets,
                    int8_t* w) {
  CheckPackShape(n, k);
  const int64_t tiles = CeilDiv(n, kTileRows), steps = CeilDiv(k, kBitmapDepth);
  std::memset(w, 0, static_cast<size_t>(n * k));
  for (int64_t index = 0; index < tiles * steps; ++index) {
    const int8_t* from = values + int64_t{offsets[index]} * 16;
    ForEachOfTile({0, 0, nullptr}, index / steps, index % steps,
                  [&](int lane, int i, int8_t, int64_t row, int64_t column) {
                    if ((bitmap[index * kLanes + lane] >> i & 1u) == 0) return;
                    const int8_t v = *from++;
                    if (row < n && column < k) w[row * k + column] = v;
                  });
  }
}

int64_t CountBlocksS8(int64_t n, int64_t k, const int8_t* w) {
  CheckPackShape(n, k);
  int64_t count = 0;
  for (int64_t tile = 0; tile < CeilDiv(n, kBlockRowsS8); ++tile)
    for (int64_t block = 0; block < CeilDiv(k, kBlockDepthS8); ++block) count += !BlockIsZero({n, k, w}, tile, block);
  return count;
}

void PackBlockS8(int64_t n, int64_t k, const int8_t* w, int8_t* values, int32_t* row_offsets, int32_t* column_indices) {
  CheckPackShape(n, k);
  const Padded padded = {n, k, w};
  int32_t at = 0;
  for (int64_t tile = 0; tile < CeilDiv(n, kBlockRowsS8); ++tile) {
    row_offsets[tile] = at;
    for (int64_t block = 0; block < CeilDiv(k, kBlockDepthS8); ++block) {
      if (BlockIsZero(padded, tile, block)) continue;
      for (int i = 0; i < kLanes * 16; ++i) {
        const Place p = BlockPlace(i / 16, i % 16);
        values[int64_t{at} * 512 + i] = padded.at(tile * kBlockRowsS8 + p.row, block * kBlockDepthS8 + p.column);
      }
      column_indices[at++] = static_cast<int32_t>(block);
    }
  }
  row_offsets[CeilDiv(n, kBlockRowsS8)] = at;
}

void UnpackBlockS8(int64_t n, int64_t k, const int8_t* values, const int32_t* row_offsets,
                   const int32_t* column_indices, int8_t* w) {
  CheckPackShape(n, k);
  std::memset(w, 0, static_cast<size_t>(n * k));
  for (int64_t tile = 0; tile < CeilDiv(n, kBlockRowsS8); ++tile)
    for (int64_t at = row_offsets[tile]; at < row_offsets[tile + 1]; ++at)
      for (int i = 0; i < kLanes * 16; ++i) {
        const Place p = BlockPlace(i / 16, i % 16);
        const int64_t row = tile * kBlockRowsS8 + p.row, column = column_indices[at] * kBlockDepthS8 + p.column;
        if (row < n && column < k) w[row * k + column] = values[at * 512 + i];
      }
}

int64_t CountNonZerosS8(int64_t n, int64_t k, const int8_t* w) { return CountNonZeros(n, k, w); }
int64_t CountNonZerosF32(int64_t n, int64_t k, const float* w) { return CountNonZeros(n, k, w); }
void PackCsrS8(int64_t n, int64_t k, const int8_t* w, int8_t* values, int32_t* row_offsets, uint16_t* column_indices) {
  PackCsr(n, k, w, values, row_offsets, column_indices);
}
void PackCsrF32(int64_t n, int64_t k, const float* w, float* values, int32_t* row_offsets, uint16_t* column_indices) {
  PackCsr(n, k, w, values, row_offsets, column_indices);
}

}  // namespace tersor::cuda

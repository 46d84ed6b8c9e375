// W to and from packed_s8.cuh. Each thread moves the 16 bytes of one lane of one piece; a warp per row takes the column
// sums. These run once per weight.
#include "kernels/cuda/packed_s8.cuh"
#include "kernels/cuda/tile_config.cuh"
#include "tersor/cuda.h"

namespace tersor::cuda {
namespace {

struct Shape {
  int64_t n, k, pieces_k, lanes;  // lanes: 32 for each piece
};

__global__ void __launch_bounds__(kPackThreads)
    PackKernel(const Shape shape, const int8_t* w, int64_t ldw, uint4* packed) {
  const int64_t i = int64_t{blockIdx.x} * kPackThreads + threadIdx.x;
  if (i >= shape.lanes) return;
  const int lane = static_cast<int>(i % kWarp);
  const int64_t piece = i / kWarp, n0 = piece / shape.pieces_k * kPieceColumns,
                k0 = piece % shape.pieces_k * kPieceDepth;
  uint32_t words[4] = {};
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    const int64_t column = n0 + PieceColumn(lane, word), depth = k0 + PieceDepth(lane, word);
    if (column >= shape.n) continue;
    for (int b = 0; b < 4; ++b)
      if (depth + b < shape.k)
        words[word] |= static_cast<uint32_t>(static_cast<uint8_t>(w[column * ldw + depth + b])) << (8 * b);
  }
  packed[i] = make_uint4(words[0], words[1], words[2], words[3]);
}

__global__ void __launch_bounds__(kPackThreads)
    UnpackKernel(const Shape shape, const uint4* packed, int8_t* w, int64_t ldw) {
  const int64_t i = int64_t{blockIdx.x} * kPackThreads + threadIdx.x;
  if (i >= shape.lanes) return;
  const int lane = static_cast<int>(i % kWarp);
  const int64_t piece = i / kWarp, n0 = piece / shape.pieces_k * kPieceColumns,
                k0 = piece % shape.pieces_k * kPieceDepth;
  const uint4 four = packed[i];
  const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    const int64_t column = n0 + PieceColumn(lane, word), depth = k0 + PieceDepth(lane, word);
    if (column >= shape.n) continue;
    for (int b = 0; b < 4; ++b)
      if (depth + b < shape.k) w[column * ldw + depth + b] = static_cast<int8_t>(words[word] >> (8 * b) & 0xffu);
  }
}

__global__ void __launch_bounds__(kPackThreads)
    ColumnSumKernel(const Shape shape, const int8_t* w, int64_t ldw, int32_t* col_sum) {
  const int64_t column = int64_t{blockIdx.x} * (kPackThreads / kWarp) + threadIdx.x / kWarp;
  int32_t sum = 0;
  if (column < shape.n)
    for (int64_t p = threadIdx.x % kWarp; p < shape.k; p += kWarp) sum += w[column * ldw + p];
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (column < shape.n && threadIdx.x % kWarp == 0) col_sum[column] = sum;
}

Shape ShapeOf(int64_t n, int64_t k) {
  const int64_t pieces_k = PadDepthS8(k) / kPieceDepth;
  return {n, k, pieces_k, PackedBytesGemmS8(n, k) / 16};
}

dim3 Blocks(int64_t count, int64_t each) { return dim3(static_cast<unsigned>((count + each - 1) / each)); }

}  // namespace

int PackGemmS8(int64_t n, int64_t k, const int8_t* w, int64_t ldw, void* packed, int32_t* col_sum, void* stream) {
  if (n < 1 || k < 1) return kInvalidValue;
  const Shape shape = ShapeOf(n, k);
  const int error = TERSOR_LAUNCH(PackKernel, Blocks(shape.lanes, kPackThreads), dim3(kPackThreads), 0, stream, shape,
                                  w, ldw, static_cast<uint4*>(packed));
  if (error != 0) return error;
  return TERSOR_LAUNCH(ColumnSumKernel, Blocks(n, kPackThreads / kWarp), dim3(kPackThreads), 0, stream, shape, w, ldw,
                       col_sum);
}

int UnpackGemmS8(int64_t n, int64_t k, const void* packed, int8_t* w, int64_t ldw, void* stream) {
  if (n < 1 || k < 1) return kInvalidValue;
  const Shape shape = ShapeOf(n, k);
  return TERSOR_LAUNCH(UnpackKernel, Blocks(shape.lanes, kPackThreads), dim3(kPackThreads), 0, stream, shape,
                       static_cast<const uint4*>(packed), w, ldw);
}

}  // namespace tersor::cuda

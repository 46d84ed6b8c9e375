// Where a packed weight of the dense int8 kernels has its values: docs/kernels.md, "CUDA layouts".
//
// Pieces of 16 columns (rows of W) by 32 of the depth, 512 bytes: 16 for each lane, in the order in which it hands them
// to the matrix instruction. Lane 4 * g + q has four words, word 2 * j + h being
//   W[n0 + 4 * (g / 2) + 2 * j + g % 2][k0 + 16 * h + 4 * q .. + 3]
// With this order of columns, lane 4 * g + q ends up with the sums of 4 neighbouring columns, 4 * q to 4 * q + 3.
#pragma once
#include <cstdint>

#include "kernels/cuda/ptx.cuh"

namespace tersor::cuda {
namespace {

constexpr int kPieceColumns = 16, kPieceDepth = 32, kPieceBytes = kPieceColumns * kPieceDepth;

// Column within its piece, of word `word` of a lane; and the first of its four values of k.
__device__ __forceinline__ int PieceColumn(int lane, int word) {
  const int g = lane / 4;
  return 4 * (g / 2) + 2 * (word / 2) + g % 2;
}
__device__ __forceinline__ int PieceDepth(int lane, int word) { return 16 * (word % 2) + 4 * (lane % 4); }

}  // namespace
}  // namespace tersor::cuda

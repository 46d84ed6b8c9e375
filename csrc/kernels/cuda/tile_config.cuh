// Every tile number of the CUDA kernels, with its laws.
#pragma once
#include <cstdint>

namespace tersor::cuda {

// The smallest of the GPUs of compute capability 8.0 to 12.0 gives a block this much.
constexpr int kSharedLimit = 99 * 1024;
constexpr int kWarp = 32;

// quantize_rows: values per thread and step, and threads per row at most.
constexpr int kQuantizeValues = 16, kQuantizeThreads = 512;
static_assert(kQuantizeValues == 16, "a thread writes 16 bytes");

constexpr int kPackThreads = 256;

// Blocks that share one tile: how many at most, for how many tiles at most, how many in all for each multiprocessor,
// and how many steps of the ring each has at least.
constexpr int kMaxParts = 16, kMaxSplitTiles = 1024, kBlocksPerProcessor = 2, kMinSplitSteps = 4;

// Few rows: warps of a block, pieces of 16 columns that each of them takes, and pieces of the depth that it reads at
// once.
constexpr int kSkinnyWarps = 8, kSkinnyPieces = 2, kSkinnyUnroll = 4;

// A block computes block_m x block_n outputs, block_k of the depth at a time, from a ring of `stages` in shared memory.
struct GemmTile {
  int block_m, block_n, block_k, warps_m, warps_n, stages;
  constexpr int threads() const { return warps_m * warps_n * kWarp; }
  constexpr int warp_m() const { return block_m / warps_m; }
  constexpr int warp_n() const { return block_n / warps_n; }
  constexpr int stage_bytes() const { return (block_m + block_n) * block_k; }
  constexpr int accumulator_bytes() const { return block_m * block_n * 4; }  // staged for the epilogue
  constexpr int shared_bytes() const {
    return stages * stage_bytes() > accumulator_bytes() ? stages * stage_bytes() : accumulator_bytes();
  }
};

// By rows of activations, fewest first: the launcher takes the first that holds m, or the last.
constexpr GemmTile kGemmS8Tiles[] = {
    {16, 64, 128, 1, 4, 5},
    {32, 64, 128, 1, 4, 4},
    {64, 128, 64, 2, 4, 4},
    {128, 128, 64, 2, 2, 4},
};
constexpr int kGemmS8TileCount = sizeof(kGemmS8Tiles) / sizeof(kGemmS8Tiles[0]);

constexpr bool HoldsLaws(const GemmTile& t) {
  return t.warp_m() % 16 == 0 && t.warp_n() % 16 == 0 && t.block_k % 64 == 0 && t.stages >= 2 &&
         t.shared_bytes() <= kSharedLimit && (t.block_m + t.block_n) * t.block_k / 16 % t.threads() == 0;
}
static_assert(HoldsLaws(kGemmS8Tiles[0]) && HoldsLaws(kGemmS8Tiles[1]) && HoldsLaws(kGemmS8Tiles[2]) &&
                  HoldsLaws(kGemmS8Tiles[3]),
              "a warp tile is made of 16x16 pieces, a row of a stage of whole 64-byte swizzle units, a stage of equal "
              "shares of 16 bytes per thread, and the ring fits the shared memory of every GPU");

}  // namespace tersor::cuda

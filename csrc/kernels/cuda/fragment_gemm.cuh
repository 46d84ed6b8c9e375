// The product y = epilogue(a W^T) for weights that come ready in the order of the matrix instruction: W is its A
// operand, 16 weight rows by one step of k, read from global memory straight into registers, some steps ahead; the
// activations are its B operand, 8 tokens, read straight from their rows. The two need not agree with the instruction
// on the order of k within a step, only with each other: lane (g, q) takes neighbouring bytes of token g, and the
// packers order the weight to match. No operand passes through shared memory, which holds nothing but the partial sums
// of warps that share one tile.
//
// What a kind of weight W supplies:
//   Args, Sum                     the launcher's arguments; int32_t or float
//   kWarpShared                   bytes of shared memory per warp for itself
//   Fragment Load(tile, step)     16 weight rows, one step, as they lie in memory
//   Operand Expand(fragment)      what the matrix instruction takes
//   Activations, LoadActivations  its 8 tokens
//   Multiply(sum, operand, activations)
#pragma once
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/tile_config.cuh"

namespace tersor::cuda {
namespace {

// A warp computes 16 * kRows weight rows by 8 * kTokens tokens. kWarpsK warps share the depth of one such tile, and the
// block has kWarpsM * kWarpsN of them.
template <int kRows_, int kTokens_, int kWarpsK_, int kWarpsM_, int kWarpsN_>
struct FragmentTile {
  static constexpr int kRows = kRows_, kTokens = kTokens_, kWarpsK = kWarpsK_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kWarps = kWarpsK * kWarpsM * kWarpsN, kThreads = kWarps * kWarp;
  static constexpr int kWarpColumns = 16 * kRows, kWarpTokens = 8 * kTokens;
  static constexpr int kBlockColumns = kWarpColumns * kWarpsN, kBlockTokens = kWarpTokens * kWarpsM;
  static constexpr int kStride = kWarpColumns + 4;  // a lane's rows 2q of the sums then lie in different banks
  static constexpr int kSums = kWarpTokens * kStride;
  static constexpr int kSharedBytes = kWarps * kSums * 4;
  static_assert(kThreads <= 256 && kRows * kTokens <= 16, "64 sums a lane leave room for the fragments in flight");
  static_assert(kSharedBytes <= kSharedLimit, "the partial sums fit");
};
using FewTokens = FragmentTile<1, 1, 8, 1, 1>;
using SomeTokens = FragmentTile<1, 4, 8, 1, 1>;

__device__ __forceinline__ void ScaleSums(const Epilogue& e, int64_t row, int64_t column, int64_t n,
                                          const int32_t (&s)[4]) {
  FinishQuad(e, row, column, n, LoadColumns(e, column, n), s);
}
__device__ __forceinline__ void ScaleSums(const Epilogue& e, int64_t row, int64_t column, int64_t n,
                                          const float (&s)[4]) {
  const ColumnQuad c = LoadColumns(e, column, n);
  const float row_scale = e.row_scale != nullptr ? e.row_scale[row] : 1.0f;
  float scaled[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) scaled[i] = __fmul_rn(s[i], __fmul_rn(row_scale, c.scale[i]));
  FinishQuad(e, row, column, n, c, scaled);
}

// The sums of all warps are in `sums`: those of one tile are added in the order of the warps, and finished.
template <typename Tile, typename Sum>
__device__ __forceinline__ void FinishTile(const Epilogue& e, int64_t m, int64_t n, const Sum* sums) {
  constexpr int kQuads = Tile::kBlockColumns / 4;
  const int64_t m0 = int64_t{blockIdx.y} * Tile::kBlockTokens, n0 = int64_t{blockIdx.x} * Tile::kBlockColumns;
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kBlockTokens * kQuads; i += Tile::kThreads) {
    const int token = i / kQuads, column = i % kQuads * 4;
    if (m0 + token >= m || n0 + column >= n) continue;
    const int tile = token / Tile::kWarpTokens * Tile::kWarpsN + column / Tile::kWarpColumns;
    const Sum* from = sums + tile * Tile::kWarpsK * Tile::kSums + token % Tile::kWarpTokens * Tile::kStride +
                      column % Tile::kWarpColumns;
    Sum total[4] = {};
    for (int warp = 0; warp < Tile::kWarpsK; ++warp)
#pragma unroll
      for (int j = 0; j < 4; ++j) total[j] += from[warp * Tile::kSums + j];
    ScaleSums(e, m0 + token, n0 + column, n, total);
  }
}

template <typename W, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1) FragmentGemm(const typename W::Args args) {
  using Sum = typename W::Sum;
  constexpr int kR = Tile::kRows, kT = Tile::kTokens, kAhead = W::kAhead, kStepWarps = Tile::kWarpsK;
  TERSOR_DYNAMIC_SHARED(shared);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int share = warp % kStepWarps, tile = warp / kStepWarps;
  const int64_t row_tiles = (args.n + 15) / 16;
  const int64_t row_tile = (int64_t{blockIdx.x} * Tile::kWarpsN + tile % Tile::kWarpsN) * kR;
  const int64_t token = (int64_t{blockIdx.y} * Tile::kWarpsM + tile / Tile::kWarpsN) * Tile::kWarpTokens + lane / 4;

  // Tiles and tokens past the end repeat the last one; their sums are dropped.
  W weight(args, lane, shared + Tile::kSharedBytes + warp * W::kWarpShared);
  int64_t tiles[kR];
  typename W::Token tokens[kT];
#pragma unroll
  for (int r = 0; r < kR; ++r) tiles[r] = min(row_tile + r, row_tiles - 1);
#pragma unroll
  for (int t = 0; t < kT; ++t) tokens[t] = weight.TokenAt(min(token + 8 * t, args.m - 1));

  Sum acc[kR][kT][4] = {};
  const int steps = weight.Steps(tiles[0]);
  typename W::Fragment ahead[kAhead][kR];
  if (share < steps) {
#pragma unroll
    for (int p = 0; p < kAhead; ++p)
#pragma unroll
      for (int r = 0; r < kR; ++r) ahead[p][r] = weight.Load(tiles[r], min(share + p * kStepWarps, steps - 1));
  }
  for (int base = share; base < steps; base += kAhead * kStepWarps) {
#pragma unroll
    for (int p = 0; p < kAhead; ++p) {
      const int step = base + p * kStepWarps;
      if (step >= steps) break;
      typename W::Activations x[kT];
#pragma unroll
      for (int t = 0; t < kT; ++t) x[t] = weight.LoadActivations(tokens[t], ahead[p][0], step);
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const typename W::Operand operand = weight.Expand(ahead[p][r]);
#pragma unroll
        for (int t = 0; t < kT; ++t) W::Multiply(acc[r][t], operand, x[t]);
        ahead[p][r] = weight.Load(tiles[r], min(step + kAhead * kStepWarps, steps - 1));
      }
    }
  }

  Sum* sums = reinterpret_cast<Sum*>(shared);
  Sum* mine = sums + warp * Tile::kSums;
#pragma unroll
  for (int r = 0; r < kR; ++r)
#pragma unroll
    for (int t = 0; t < kT; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        mine[(8 * t + lane % 4 * 2 + i % 2) * Tile::kStride + 16 * r + lane / 4 + 8 * (i / 2)] = acc[r][t][i];
  __syncthreads();
  FinishTile<Tile>(args.epilogue, args.m, args.n, sums);
}

template <typename W, typename Tile>
int LaunchFragmentGemm(const typename W::Args& args, void* stream) {
  const dim3 grid(static_cast<unsigned>((args.n + Tile::kBlockColumns - 1) / Tile::kBlockColumns),
                  static_cast<unsigned>((args.m + Tile::kBlockTokens - 1) / Tile::kBlockTokens));
  return TERSOR_LAUNCH((FragmentGemm<W, Tile>), grid, dim3(Tile::kThreads),
                       static_cast<size_t>(Tile::kSharedBytes + Tile::kWarps * W::kWarpShared), stream, args);
}

// The operand of the activations for one step of 64 bytes of depth: lane (g, q) has bytes 16 q .. of token g.
struct Bytes64 {
  uint32_t b[4];
};
__device__ __forceinline__ Bytes64 LoadBytes64(const uint8_t* at) {
  const uint4 v = *reinterpret_cast<const uint4*>(at);
  return {{v.x, v.y, v.z, v.w}};
}

}  // namespace
}  // namespace tersor::cuda

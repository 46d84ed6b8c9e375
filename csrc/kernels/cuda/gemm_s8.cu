// Tiles of kGemmS8Tiles. W lies packed in the order of the matrix instruction (packed_s8.cuh), so that it is read from
// shared memory 16 bytes per lane, without conflicts; rows of A are swizzled for ldmatrix: the 16-byte chunk c of row r
// lies at c ^ (r / (128 / block_k) % chunks). Both come through a ring of cp.async stages. Exact: u8 x s8 into int32
// does not saturate and k is at most 65536; blocks that share the depth of a tile add their integers.
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/gemm_s8_skinny.cuh"
#include "kernels/cuda/packed_s8.cuh"
#include "kernels/cuda/split.cuh"
#include "kernels/cuda/tile_config.cuh"

namespace tersor::cuda {
namespace {

struct GemmS8Params {
  int64_t m, n;
  const uint8_t* a;
  int64_t lda;
  const uint8_t* packed;
  int64_t depth;  // padded to kDepthPadS8
  Split split;
  Epilogue epilogue;
};

// One block's share of a tile: accumulators of one warp, and how the ring is filled and read.
template <int kTile>
struct Block {
  static constexpr GemmTile kT = kGemmS8Tiles[kTile];
  static constexpr int kWarpM = kT.warp_m(), kWarpN = kT.warp_n();
  static constexpr int kThreads = kT.threads(), kChunks = kT.block_k / 16;  // 16-byte chunks of a row of A
  static constexpr int kABytes = kT.block_m * kT.block_k, kStageBytes = kT.stage_bytes();
  static constexpr int kRowStep = kThreads / kChunks;         // rows of A between two copies of a thread
  static constexpr int kColumnStep = kThreads / kT.block_k;   // pieces of W between them
  static constexpr int kMt = kWarpM / 16, kNt = kWarpN / 16;  // 16x16 pieces of a warp
  static_assert(kThreads % kChunks == 0 && kThreads % kT.block_k == 0 && kT.block_m % kRowStep == 0 &&
                    kT.block_n / kPieceColumns % kColumnStep == 0,
                "the copies of a thread are equally spaced rows and pieces");

  int32_t acc[kMt][kNt][8] = {};  // 0-3: row g, columns 4q to 4q + 3; 4-7: row g + 8

  static __device__ __forceinline__ int Swizzle(int row, int chunk) { return chunk ^ (row * kChunks / 8 % kChunks); }

  // Copies [k, k + block_k) of A and W to a stage. What lies outside becomes 0.
  static __device__ __forceinline__ void Fill(const GemmS8Params& p, unsigned char* stage, int64_t m0, int64_t n0,
                                              int64_t k) {
    const int t = static_cast<int>(threadIdx.x), row = t / kChunks, chunk = t % kChunks;
    const bool a_inside = k + chunk * 16 < p.depth;
    const uint8_t* a = p.a + (m0 + row) * p.lda + k + chunk * 16;
#pragma unroll
    for (int i = 0; i < kT.block_m / kRowStep; ++i) {
      const int r = row + i * kRowStep;
      const bool inside = a_inside && m0 + r < p.m;
      ptx::CopyAsync16(stage + r * kT.block_k + Swizzle(r, chunk) * 16, inside ? a + i * kRowStep * p.lda : p.a,
                       inside ? 16 : 0);
    }
    const int piece = t / kT.block_k, within = t % kT.block_k * 16;
    const int64_t piece_bytes = p.depth * kPieceColumns;
    const bool w_inside = k + within / kPieceBytes * kPieceDepth < p.depth;
    const uint8_t* w = p.packed + (n0 / kPieceColumns + piece) * piece_bytes + k * kPieceColumns + within;
#pragma unroll
    for (int i = 0; i < kT.block_n / kPieceColumns / kColumnStep; ++i) {
      const bool inside = w_inside && n0 + (piece + i * kColumnStep) * kPieceColumns < p.n;
      ptx::CopyAsync16(stage + kABytes + (piece + i * kColumnStep) * kT.block_k * kPieceColumns + within,
                       inside ? w + i * kColumnStep * piece_bytes : p.packed, inside ? 16 : 0);
    }
  }

  __device__ __forceinline__ void Multiply(const unsigned char* stage) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const int row = warp / kT.warps_n * kWarpM + lane % 16, piece = warp % kT.warps_n * kNt;
    const unsigned char* w = stage + kABytes + piece * kT.block_k * kPieceColumns + lane * 16;
#pragma unroll
    for (int kk = 0; kk < kT.block_k / kPieceDepth; ++kk) {
      uint32_t a[kMt][4];
#pragma unroll
      for (int i = 0; i < kMt; ++i)
        ptx::LoadMatrix4(a[i], stage + (row + i * 16) * kT.block_k + Swizzle(row + i * 16, kk * 2 + lane / 16) * 16);
#pragma unroll
      for (int j = 0; j < kNt; ++j) {
        const uint4 b = *reinterpret_cast<const uint4*>(w + j * kT.block_k * kPieceColumns + kk * kPieceBytes);
        const uint32_t low[2] = {b.x, b.y}, high[2] = {b.z, b.w};
#pragma unroll
        for (int i = 0; i < kMt; ++i) {
          int32_t (&c)[8] = acc[i][j];
          int32_t even[4] = {c[0], c[1], c[4], c[5]}, odd[4] = {c[2], c[3], c[6], c[7]};
          ptx::MmaU8S8(even, a[i], low);
          ptx::MmaU8S8(odd, a[i], high);
          c[0] = even[0], c[1] = even[1], c[4] = even[2], c[5] = even[3];
          c[2] = odd[0], c[3] = odd[1], c[6] = odd[2], c[7] = odd[3];
        }
      }
    }
  }

  // Steps [begin, end) of block_k through the ring.
  __device__ __forceinline__ void Run(const GemmS8Params& p, unsigned char* ring, int64_t m0, int64_t n0, int begin,
                                      int end) {
    int next = begin, filled = 0, read = 0;
#pragma unroll
    for (int s = 0; s < kT.stages - 1; ++s) {
      if (next < end) Fill(p, ring + s * kStageBytes, m0, n0, int64_t{next} * kT.block_k);
      ++next;
      ptx::CopyAsyncCommit();
    }
    filled = kT.stages - 1;
    for (int step = begin; step < end; ++step) {
      ptx::CopyAsyncWait<kT.stages - 2>();
      __syncthreads();  // the stage is there for all, and the one filled next has been read by all
      if (next < end) Fill(p, ring + filled * kStageBytes, m0, n0, int64_t{next} * kT.block_k);
      ++next;
      ptx::CopyAsyncCommit();
      Multiply(ring + read * kStageBytes);
      read = read + 1 == kT.stages ? 0 : read + 1;
      filled = filled + 1 == kT.stages ? 0 : filled + 1;
    }
    ptx::CopyAsyncWait<0>();
  }

  // Through shared memory, so that rows of y are written whole and the code of the activations is there once.
  __device__ __forceinline__ void Finish(const GemmS8Params& p, unsigned char* shared, int64_t m0, int64_t n0) {
    constexpr int kQuads = kWarpN / 4, kTurn = kQuads >= 8 ? 4 : 0;  // odd rows are turned by 4 quads: other banks
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    int4* own = reinterpret_cast<int4*>(shared) + warp * kWarpM * kQuads;
#pragma unroll
    for (int i = 0; i < kMt; ++i)
#pragma unroll
      for (int j = 0; j < kNt; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = i * 16 + h * 8 + lane / 4, quad = j * 4 + lane % 4;
          const int32_t* c = acc[i][j] + h * 4;
          own[row * kQuads + (quad ^ (row % 2 * kTurn))] = make_int4(c[0], c[1], c[2], c[3]);
        }
    __syncwarp();
    static_assert(kWarp % kQuads == 0, "a lane stays with its columns");
    const int quad = lane % kQuads;
    const int64_t row0 = m0 + warp / kT.warps_n * kWarpM, column = n0 + warp % kT.warps_n * kWarpN + quad * 4;
    if (column >= p.n) return;
    const ColumnQuad columns = LoadColumns(p.epilogue, column, p.n);
#pragma unroll 1
    for (int row = lane / kQuads; row < kWarpM && row0 + row < p.m; row += kWarp / kQuads) {
      const int4 c = own[row * kQuads + (quad ^ (row % 2 * kTurn))];
      const int32_t four[4] = {c.x, c.y, c.z, c.w};
      FinishQuad(p.epilogue, row0 + row, column, p.n, columns, four);
    }
  }
};

template <int kTile>
__global__ void __launch_bounds__(kGemmS8Tiles[kTile].threads()) GemmS8Kernel(const GemmS8Params p) {
  TERSOR_DYNAMIC_SHARED(shared);
  constexpr GemmTile kT = kGemmS8Tiles[kTile];
  using B = Block<kTile>;
  const int64_t m0 = int64_t{blockIdx.y} * kT.block_m, n0 = int64_t{blockIdx.x} * kT.block_n;
  const int steps = static_cast<int>((p.depth + kT.block_k - 1) / kT.block_k);
  const int part = static_cast<int>(blockIdx.z), parts = p.split.parts;
  B block;
  block.Run(p, shared, m0, n0, steps * part / parts, steps * (part + 1) / parts);
  __syncthreads();  // the ring becomes the staging area
  if (parts > 1) {
    constexpr int kWords = B::kMt * B::kNt * 8;
    int32_t (&flat)[kWords] = reinterpret_cast<int32_t (&)[kWords]>(block.acc);
    if (!JoinParts<kWords, B::kThreads>(p.split, static_cast<int>(blockIdx.y * gridDim.x + blockIdx.x), part, flat,
                                        shared))
      return;
  }
  block.Finish(p, shared, m0, n0);
}

template <int kTile>
int LaunchGemmS8(const GemmS8Params& p, void* stream) {
  constexpr GemmTile kT = kGemmS8Tiles[kTile];
  const dim3 grid(static_cast<unsigned>((p.n + kT.block_n - 1) / kT.block_n),
                  static_cast<unsigned>((p.m + kT.block_m - 1) / kT.block_m), static_cast<unsigned>(p.split.parts));
  return TERSOR_LAUNCH(GemmS8Kernel<kTile>, grid, dim3(kT.threads()), kT.shared_bytes(), stream, p);
}

struct Choice {
  int tile, parts;
};

int64_t TilesOf(int tile, int64_t m, int64_t n) {
  const GemmTile& t = kGemmS8Tiles[tile];
  return (m + t.block_m - 1) / t.block_m * ((n + t.block_n - 1) / t.block_n);
}

// The first tile that holds m. As many parts as fill the multiprocessors, each at least kMinSplitSteps long.
Choice Choose(int64_t m, int64_t n, int64_t k) {
  int tile = 0;
  while (tile + 1 < kGemmS8TileCount && kGemmS8Tiles[tile].block_m < m) ++tile;
  const GemmTile& t = kGemmS8Tiles[tile];
  return {tile, ChooseParts(TilesOf(tile, m, n), (PadDepthS8(k) + t.block_k - 1) / t.block_k, kMinSplitSteps)};
}

int64_t WorkspaceBytes(const Choice& choice, int64_t m, int64_t n) {
  const GemmTile& t = kGemmS8Tiles[choice.tile];
  return SplitBytes(TilesOf(choice.tile, m, n), choice.parts, t.block_m * t.block_n);
}

}  // namespace

int64_t GemmS8WorkspaceBytes(int64_t m, int64_t n, int64_t k) {
  return m <= kSkinnyRows ? GemmS8FewRowsWorkspaceBytes(n, k) : WorkspaceBytes(Choose(m, n, k), m, n);
}

int GemmS8(const GemmS8Args& args, void* stream) {
  const int64_t depth = PadDepthS8(args.k);
  if (args.m < 0 || args.n < 1 || args.k < 1 || args.lda % 16 != 0 || args.lda < depth) return kInvalidValue;
  if (args.tile >= kGemmS8TileCount || args.splits > kMaxParts) return kInvalidValue;
  if (args.m == 0) return 0;
  if (args.tile < 0 && args.m <= kSkinnyRows) return GemmS8FewRows(args, stream);
  Choice choice = Choose(args.m, args.n, args.k);
  if (args.tile >= 0) choice = {args.tile, 1};
  if (args.splits > 0) choice.parts = args.splits;
  if (TilesOf(choice.tile, args.m, args.n) > kMaxSplitTiles) choice.parts = 1;
  if (args.workspace == nullptr || args.workspace_bytes < WorkspaceBytes(choice, args.m, args.n)) choice.parts = 1;
  const GemmS8Params p = {args.m,
                          args.n,
                          args.a,
                          args.lda,
                          static_cast<const uint8_t*>(args.packed),
                          depth,
                          SplitOf(choice.parts, args.workspace),
                          args.epilogue};
  static constexpr int (*kLaunch[])(const GemmS8Params&, void*) = {LaunchGemmS8<0>, LaunchGemmS8<1>, LaunchGemmS8<2>,
                                                                   LaunchGemmS8<3>};
  static_assert(sizeof(kLaunch) / sizeof(kLaunch[0]) == kGemmS8TileCount, "one launcher per tile");
  return kLaunch[choice.tile](p, stream);
}

}  // namespace tersor::cuda

// Few rows: the weight is read once, from memory straight to registers, 16 bytes per lane and several of them in
// flight. A block has kSkinnyPieces * 16 columns; its warps share the depth, piece by piece, and so may several blocks.
// The integers are exact as in gemm_s8.cu. Floats: products of x and int8 are exact, sums are float32 in a fixed order;
// the error is at most k * 2^-22 times the sum of the products' magnitudes.
#include "kernels/cuda/gemm_s8_skinny.cuh"
#include "kernels/cuda/skinny_inputs.cuh"
#include "kernels/cuda/split.cuh"

namespace tersor::cuda {
namespace {

constexpr int kColumns = kSkinnyPieces * kPieceColumns, kThreads = kSkinnyWarps * kWarp;

struct SkinnyParams {
  int64_t m, n, k, depth;  // depth: k padded
  const void* x;
  int64_t ldx;
  const float* input_scale;
  bool vector;
  const uint8_t* packed;
  Split split;
  Epilogue epilogue;
};

// kHalves: groups of 8 rows of x.
template <typename Input, int kHalves>
struct Sums {
  using Acc = typename Input::Acc;
  // Sums in shared memory: [warp][row of x][kStride], padded against bank conflicts.
  static constexpr int kStride = kColumns + 4, kRows = kHalves * 8, kOwners = kRows * kColumns / 4;
  static_assert(kOwners <= kThreads, "one thread for 4 neighbouring sums");

  Acc acc[kSkinnyPieces][kHalves][4] = {};

  // kSkinnyUnroll pieces of every 16 columns, from piece `first` on, `live` of them inside.
  __device__ __forceinline__ void Add(const SkinnyParams& p, const uint8_t* (&w)[kSkinnyPieces], int first, int live) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    uint4 piece[kSkinnyUnroll][kSkinnyPieces];
#pragma unroll
    for (int u = 0; u < kSkinnyUnroll; ++u)
#pragma unroll
      for (int j = 0; j < kSkinnyPieces; ++j) {
        piece[u][j] = make_uint4(0, 0, 0, 0);
        if (u < live && w[j] != nullptr) piece[u][j] = ptx::LoadStream16(w[j] + int64_t{first + u} * kPieceBytes);
      }
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      const int64_t row = h * 8 + lane / 4;
#pragma unroll
      for (int u = 0; u < kSkinnyUnroll; ++u) {
        const int64_t depth = int64_t{first + u} * kPieceDepth + lane % 4 * 4;
        typename Input::Fragment fragment = {};
        if (row < p.m && u < live)
          fragment = Input::Load(p.x, row * p.ldx + depth, p.input_scale, depth, p.k - depth, p.vector);
#pragma unroll
        for (int j = 0; j < kSkinnyPieces; ++j) Input::Multiply(acc[j][h], piece[u][j], fragment);
      }
    }
  }

  // The sums of all warps: 4 of them in each of the first kOwners threads, zeros in the others.
  __device__ __forceinline__ void JoinWarps(unsigned char* shared, Acc (&sums)[4]) {
    const int t = static_cast<int>(threadIdx.x), lane = t % kWarp, q = lane % 4;
    Acc* all = reinterpret_cast<Acc*>(shared);
    Acc* own = all + t / kWarp * kRows * kStride;
#pragma unroll
    for (int j = 0; j < kSkinnyPieces; ++j)
#pragma unroll
      for (int h = 0; h < kHalves; ++h)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          own[(h * 8 + 2 * q + i % 2) * kStride + j * kPieceColumns + PieceColumn(lane, i)] = acc[j][h][i];
    __syncthreads();
    if (t < kOwners) {
      const Acc* first = all + t / (kColumns / 4) * kStride + t % (kColumns / 4) * 4;
#pragma unroll
      for (int w = 0; w < kSkinnyWarps; ++w)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i] = cuda::Add(sums[i], first[w * kRows * kStride + i]);
    }
    __syncthreads();
  }
};

template <typename Input, int kHalves>
__global__ void __launch_bounds__(kThreads) SkinnyKernel(const SkinnyParams p) {
  TERSOR_DYNAMIC_SHARED(shared);
  using S = Sums<Input, kHalves>;
  const int t = static_cast<int>(threadIdx.x), pieces = static_cast<int>(p.depth / kPieceDepth);
  const int part = static_cast<int>(blockIdx.y), parts = p.split.parts;
  const int begin = pieces * part / parts, end = pieces * (part + 1) / parts;
  const int64_t n0 = int64_t{blockIdx.x} * kColumns;
  const uint8_t* w[kSkinnyPieces];
#pragma unroll
  for (int j = 0; j < kSkinnyPieces; ++j) {
    const int64_t column = n0 + j * kPieceColumns;
    w[j] = column < p.n ? p.packed + column * p.depth + t % kWarp * 16 : nullptr;
  }
  S block;
  for (int first = begin + t / kWarp * kSkinnyUnroll; first < end; first += kSkinnyWarps * kSkinnyUnroll)
    block.Add(p, w, first, end - first);
  typename Input::Acc sums[4] = {};
  block.JoinWarps(shared, sums);
  if (parts > 1 && !JoinParts<4, S::kOwners>(p.split, static_cast<int>(blockIdx.x), part, sums, shared)) return;
  const int64_t row = t / (kColumns / 4), column = n0 + t % (kColumns / 4) * 4;
  if (t >= S::kOwners || row >= p.m || column >= p.n) return;
  const ColumnQuad columns = LoadColumns(p.epilogue, column, p.n);
  if constexpr (Input::kInteger) {
    FinishQuad(p.epilogue, row, column, p.n, columns, sums);
  } else {
    float scaled[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) scaled[i] = __fmul_rn(sums[i], columns.scale[i]);
    FinishQuad(p.epilogue, row, column, p.n, columns, scaled);
  }
}

template <typename Input>
int LaunchSkinny(const SkinnyParams& p, void* stream) {
  const dim3 grid(static_cast<unsigned>((p.n + kColumns - 1) / kColumns), static_cast<unsigned>(p.split.parts));
  const auto bytes = [](int rows) { return static_cast<size_t>(kSkinnyWarps * rows * (kColumns + 4) * 4); };
  if (p.m <= 8) return TERSOR_LAUNCH((SkinnyKernel<Input, 1>), grid, dim3(kThreads), bytes(8), stream, p);
  return TERSOR_LAUNCH((SkinnyKernel<Input, 2>), grid, dim3(kThreads), bytes(16), stream, p);
}

int64_t Tiles(int64_t n) { return (n + kColumns - 1) / kColumns; }

int PartsOf(int64_t n, int64_t k) {
  return ChooseParts(Tiles(n), PadDepthS8(k) / kPieceDepth / (kSkinnyWarps * kSkinnyUnroll), 1);
}

int64_t Bytes(int64_t n, int parts) { return SplitBytes(Tiles(n), parts, kSkinnyRows * kColumns); }

Split ChooseSplit(int64_t n, int64_t k, int splits, void* workspace, int64_t workspace_bytes) {
  const int parts = splits > 0 ? splits : PartsOf(n, k);
  const bool fits = workspace != nullptr && workspace_bytes >= Bytes(n, parts);
  return SplitOf(fits ? parts : 1, workspace);
}

}  // namespace

int64_t GemmS8SkinnyWorkspaceBytes(int64_t, int64_t n, int64_t k) { return Bytes(n, PartsOf(n, k)); }

int GemmS8Skinny(const GemmS8SkinnyArgs& args, void* stream) {
  if (args.m < 0 || args.m > kSkinnyRows || args.n < 1 || args.k < 1 || args.splits > kMaxParts) return kInvalidValue;
  if (args.splits > 1 && Tiles(args.n) > kMaxSplitTiles) return kInvalidValue;
  if (args.m == 0) return 0;
  SkinnyParams p = {args.m,
                    args.n,
                    args.k,
                    PadDepthS8(args.k),
                    args.x,
                    args.ldx,
                    args.input_scale,
                    false,
                    static_cast<const uint8_t*>(args.packed),
                    ChooseSplit(args.n, args.k, args.splits, args.workspace, args.workspace_bytes),
                    args.epilogue};
  const uint64_t element = args.epilogue.dtype == DType::kF32 ? 4 : 2;
  p.vector =
      ((reinterpret_cast<uintptr_t>(args.x) | static_cast<uint64_t>(args.ldx) * element) & (4 * element - 1)) == 0;
  p.epilogue.sums = nullptr;
  switch (args.epilogue.dtype) {
    case DType::kF32:
      return LaunchSkinny<InputF32>(p, stream);
    case DType::kBf16:
      return LaunchSkinny<Input16<DType::kBf16>>(p, stream);
    case DType::kF16:
      return LaunchSkinny<Input16<DType::kF16>>(p, stream);
  }
  return kInvalidValue;
}

int64_t GemmS8FewRowsWorkspaceBytes(int64_t n, int64_t k) { return Bytes(n, PartsOf(n, k)); }

int GemmS8FewRows(const GemmS8Args& args, void* stream) {
  const SkinnyParams p = {args.m,
                          args.n,
                          args.k,
                          PadDepthS8(args.k),
                          args.a,
                          args.lda,
                          nullptr,
                          true,
                          static_cast<const uint8_t*>(args.packed),
                          ChooseSplit(args.n, args.k, args.splits, args.workspace, args.workspace_bytes),
                          args.epilogue};
  return LaunchSkinny<InputU8>(p, stream);
}

}  // namespace tersor::cuda

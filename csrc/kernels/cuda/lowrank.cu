// y = epilogue((x down^T) up^T), fused: a block takes 32 tokens, and their intermediate h [32][rank] stays in shared
// memory. Down: the eight warps share the depth of 32 columns of h at a time and add up through shared memory. Up: each
// warp takes 32 columns of y. Every operand is row-major; a lane takes 16 neighbouring bytes of its row, one step of 64
// bytes of depth being two matrix instructions, whose order of k is then the same on both sides. Int8 is exact in both
// products; h is quantised row by row as kernels/reference/linear_s8_ref.h says. Float16 sums in float32 in the order
// of the hardware, and h is rounded once.
#include <cfloat>

#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/tile_config.cuh"

namespace tersor::cuda {
namespace {

constexpr uint32_t kAllLanes = 0xffffffffu;

struct LowRankTile {
  static constexpr int kTokens = 32, kColumns = 32, kWarps = 8, kThreads = kWarps * kWarp;
  static constexpr int kStride = kColumns + 4, kStage = kTokens * kStride;  // of the sums of one warp
  static constexpr int kRowWords = kMaxRank + 4;                            // of h in float32
  // Of a row of h as an operand: the 16 bytes that eight lanes read of two rows at once lie in different banks.
  static constexpr int OperandBytes(int bytes) { return bytes % 128 == 64 ? bytes : bytes + 64; }
  static constexpr int kStageBytes = kWarps * kStage * 4, kRowBytes = kTokens * kRowWords * 4;
  static constexpr int kOperandOffset = kStageBytes + kRowBytes + kTokens * 8;  // 8: the parameters of a row
};
using Tile = LowRankTile;
static_assert(Tile::kOperandOffset + Tile::kTokens * Tile::OperandBytes(2 * int{kMaxRank}) <= kSharedLimit,
              "sums of all warps, h and its quantised form fit");

// Sizes that the launcher works out, in bytes where not said otherwise.
struct LowRankPlan {
  int64_t down_row, up_row, block_columns;
  int operand_row, padded_rank;  // padded_rank in values
  bool vector;                   // every row of x is 16-byte aligned
};

struct Words {
  uint32_t w[4];
};
__device__ __forceinline__ Words LoadWords(const void* p) {
  const uint4 v = *static_cast<const uint4*>(p);
  return {{v.x, v.y, v.z, v.w}};
}

// What differs between the two types.
struct TypeF16 {
  using Sum = float;
  static constexpr int kBytes = 2;
  static __device__ __forceinline__ void Mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::MmaF16(c, a, b);
  }
};
struct TypeS8 {
  using Sum = int32_t;
  static constexpr int kBytes = 1;
  static __device__ __forceinline__ void Mma(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::MmaU8S8(c, a, b);
  }
};

// One step: a[r][h] is row g + 8 h of 16 tokens, b[t] one of 8 columns.
template <typename Type>
__device__ __forceinline__ void MultiplyStep(typename Type::Sum (&acc)[2][4][4], const Words (&a)[2][2],
                                             const Words (&b)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t rows[4] = {a[r][0].w[i], a[r][1].w[i], a[r][0].w[i + 1], a[r][1].w[i + 1]};
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const uint32_t columns[2] = {b[t].w[i], b[t].w[i + 1]};
        Type::Mma(acc[r][t], rows, columns);
      }
    }
}

template <typename Sum>
__device__ __forceinline__ void StoreSums(const Sum (&acc)[2][4][4], int lane, Sum* stage) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int t = 0; t < 4; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        stage[(16 * r + lane / 4 + 8 * (i / 2)) * Tile::kStride + 8 * t + lane % 4 * 2 + i % 2] = acc[r][t][i];
}

// 16 bytes of a row of x. Float16 rows come from outside: unaligned ones, and what lies behind k, value by value.
template <typename Type>
__device__ __forceinline__ Words LoadX(const LowRankArgs& args, int64_t row, int64_t byte, bool vector) {
  const uint8_t* at = static_cast<const uint8_t*>(args.x) + row * args.ldx * Type::kBytes + byte;
  if constexpr (Type::kBytes == 2) {
    const int64_t first = byte / 2;
    if (!vector || first + 8 > args.k) {
      Words x = {};
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (first + i < args.k) x.w[i / 2] |= uint32_t{reinterpret_cast<const uint16_t*>(at)[i]} << (16 * (i % 2));
      return x;
    }
  }
  return LoadWords(at);
}

// This warp's part of the sums of columns [begin, begin + 32) of h.
template <typename Type>
__device__ __forceinline__ void DownPart(const LowRankArgs& args, const LowRankPlan& plan, int64_t m0, int begin,
                                         int warp, int lane, typename Type::Sum (&acc)[2][4][4]) {
  const int64_t live_bytes = args.k * Type::kBytes;
  const int g = lane / 4, q = lane % 4;
  int64_t token[2][2];
  const uint8_t* column[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    token[i / 2][i % 2] = min(m0 + 8 * i + g, args.m - 1);
    column[i] = static_cast<const uint8_t*>(args.down) +
                min(int64_t{begin} + 8 * i + g, args.rank - 1) * plan.down_row + 16 * q;
  }
#pragma unroll 2
  for (int64_t step = int64_t{warp} * 64; step < live_bytes; step += Tile::kWarps * 64) {
    Words a[2][2], b[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i / 2][i % 2] = LoadX<Type>(args, token[i / 2][i % 2], step + 16 * q, plan.vector);
      b[i] = LoadWords(column[i] + step);
    }
    MultiplyStep<Type>(acc, a, b);
  }
}

// Sums of columns [begin, begin + 32), added in the order of the warps, as values of h in float32; zeros from the rank
// on.
template <typename Type>
__device__ __forceinline__ void AddUp(const LowRankArgs& args, int64_t m0, int begin, const typename Type::Sum* stage,
                                      float* h) {
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kTokens * Tile::kColumns; i += Tile::kThreads) {
    const int token = i / Tile::kColumns, column = i % Tile::kColumns;
    typename Type::Sum sum = 0;
    for (int warp = 0; warp < Tile::kWarps; ++warp) sum += stage[warp * Tile::kStage + token * Tile::kStride + column];
    float v = 0.0f;
    if (begin + column < args.rank) {
      if constexpr (Type::kBytes == 1) {
        const int64_t row = min(m0 + token, args.m - 1);
        v = ScaledSum(sum, args.epilogue.row_zero[row], args.down_sum[begin + column], args.epilogue.row_scale[row],
                      args.down_scale[begin + column]);
      } else {
        v = sum;
      }
    }
    h[token * Tile::kRowWords + begin + column] = v;
  }
}

// Row parameters of the quantised h.
struct HRow {
  float scale;
  int32_t zero;
};

// One row of h, by one warp, as linear_s8_ref.h has it.
__device__ __forceinline__ HRow QuantizeH(const float* h, int rank, int padded, int lane, uint8_t* q) {
  float lo = 0.0f, hi = 0.0f;
  int odd = 0;
  for (int i = lane; i < rank; i += kWarp) {
    lo = h[i] < lo ? h[i] : lo;
    hi = h[i] > hi ? h[i] : hi;
    odd |= (__float_as_int(h[i]) & 0x7f800000) == 0x7f800000 ? 1 : 0;
  }
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const float other_lo = __shfl_xor_sync(kAllLanes, lo, step), other_hi = __shfl_xor_sync(kAllLanes, hi, step);
    lo = other_lo < lo ? other_lo : lo;
    hi = other_hi > hi ? other_hi : hi;
    odd |= __shfl_xor_sync(kAllLanes, odd, step);
  }
  const float width = __fsub_rn(__fdiv_rn(hi, 255.0f), __fdiv_rn(lo, 255.0f));
  const float scale = width > FLT_MIN ? width : FLT_MIN, inv_scale = __fdiv_rn(1.0f, scale);
  const int32_t zero = odd != 0 ? 0 : min(__float2int_rn(__fmul_rn(-lo, inv_scale)), 255);
  const float least = static_cast<float>(-zero), most = static_cast<float>(255 - zero);
  for (int i = lane; i < padded; i += kWarp) {
    float t = i < rank ? __fmul_rn(h[i], inv_scale) : 0.0f;
    t = t > least ? t : least;
    t = t < most ? t : most;
    q[i] = static_cast<uint8_t>(odd != 0 || i >= rank ? 0 : __float2int_rn(t) + zero);
  }
  return {odd != 0 ? __int_as_float(0x7fc00000) : scale, zero};
}

// h as the operand of the second product, a warp taking every eighth row.
template <typename Type>
__device__ __forceinline__ void MakeOperand(const LowRankPlan& plan, const float* h, int rank, int warp, int lane,
                                            uint8_t* operand, HRow* rows) {
  for (int token = warp; token < Tile::kTokens; token += Tile::kWarps) {
    const float* from = h + token * Tile::kRowWords;
    uint8_t* to = operand + token * plan.operand_row;
    if constexpr (Type::kBytes == 2) {
      for (int i = lane; i < plan.padded_rank; i += kWarp)
        reinterpret_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(i < rank ? FloatToF16(from[i]) : 0u);
    } else {
      const HRow row = QuantizeH(from, rank, plan.padded_rank, lane, to);
      if (lane == 0) rows[token] = row;
    }
  }
}

__device__ __forceinline__ void FinishFour(const Epilogue& e, int64_t row, int64_t column, int64_t n, const HRow&,
                                           const float* sums) {
  const ColumnQuad c = LoadColumns(e, column, n);
  const float row_scale = e.row_scale != nullptr ? e.row_scale[row] : 1.0f;
  float scaled[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) scaled[i] = __fmul_rn(sums[i], __fmul_rn(row_scale, c.scale[i]));
  FinishQuad(e, row, column, n, c, scaled);
}
__device__ __forceinline__ void FinishFour(const Epilogue& e, int64_t row, int64_t column, int64_t n, const HRow& h,
                                           const int32_t* sums) {
  const ColumnQuad c = LoadColumns(e, column, n);
  const int32_t acc[4] = {sums[0], sums[1], sums[2], sums[3]};
  if (e.sums != nullptr) return FinishQuad(e, row, column, n, c, acc);
  float scaled[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) scaled[i] = ScaledSum(acc[i], h.zero, c.sum[i], h.scale, c.scale[i]);
  FinishQuad(e, row, column, n, c, scaled);
}

// Columns [begin, begin + 32) of y, by one warp.
template <typename Type>
__device__ __forceinline__ void UpColumns(const LowRankArgs& args, const LowRankPlan& plan, int64_t m0, int64_t begin,
                                          const uint8_t* operand, int lane, const HRow* rows,
                                          typename Type::Sum* stage) {
  const int g = lane / 4, q = lane % 4;
  typename Type::Sum acc[2][4][4] = {};
  for (int step = 0; step < args.rank * Type::kBytes; step += 64) {
    Words a[2][2], b[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i / 2][i % 2] = LoadWords(operand + (8 * i + g) * plan.operand_row + step + 16 * q);
      const int64_t column = min(begin + 8 * i + g, args.n - 1);
      b[i] = LoadWords(static_cast<const uint8_t*>(args.up) + column * plan.up_row + step + 16 * q);
    }
    MultiplyStep<Type>(acc, a, b);
  }
  __syncwarp();  // the lanes are done with the columns before
  StoreSums(acc, lane, stage);
  __syncwarp();
  for (int i = lane; i < Tile::kTokens * Tile::kColumns / 4; i += kWarp) {
    const int token = i / (Tile::kColumns / 4), column = i % (Tile::kColumns / 4) * 4;
    if (m0 + token >= args.m || begin + column >= args.n) continue;
    FinishFour(args.epilogue, m0 + token, begin + column, args.n, rows[token], stage + token * Tile::kStride + column);
  }
}

template <typename Type>
__global__ void __launch_bounds__(LowRankTile::kThreads, 1) LowRank(const LowRankArgs args, const LowRankPlan plan) {
  using Sum = typename Type::Sum;
  TERSOR_DYNAMIC_SHARED(shared);
  Sum* stage = reinterpret_cast<Sum*>(shared);
  float* h = reinterpret_cast<float*>(shared + Tile::kStageBytes);
  HRow* rows = reinterpret_cast<HRow*>(shared + Tile::kStageBytes + Tile::kRowBytes);
  uint8_t* operand = shared + Tile::kOperandOffset;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int rank = static_cast<int>(args.rank);
  const int64_t m0 = int64_t{blockIdx.x} * Tile::kTokens;

  for (int begin = 0; begin < rank; begin += Tile::kColumns) {
    Sum acc[2][4][4] = {};
    DownPart<Type>(args, plan, m0, begin, warp, lane, acc);
    StoreSums(acc, lane, stage + warp * Tile::kStage);
    __syncthreads();
    AddUp<Type>(args, m0, begin, stage, h);
    __syncthreads();
  }
  MakeOperand<Type>(plan, h, rank, warp, lane, operand, rows);
  __syncthreads();

  const int64_t n0 = int64_t{blockIdx.y} * plan.block_columns, n1 = min(n0 + plan.block_columns, args.n);
  for (int64_t begin = n0 + warp * Tile::kColumns; begin < n1; begin += Tile::kWarps * Tile::kColumns)
    UpColumns<Type>(args, plan, m0, begin, operand, lane, rows, stage + warp * Tile::kStage);
}

template <typename Type>
int Launch(const LowRankArgs& args, void* stream) {
  if (args.rank < 1 || args.rank > kMaxRank) return kInvalidValue;
  // While multiprocessors would be idle, more blocks share the columns, and repeat the first product.
  constexpr int64_t kShare = Tile::kWarps * Tile::kColumns;
  const int64_t tiles = (args.m + Tile::kTokens - 1) / Tile::kTokens, shares = (args.n + kShare - 1) / kShare;
  const int64_t wanted = (ptx::MultiprocessorCount() + tiles - 1) / tiles;
  const int64_t splits = wanted < 1 ? 1 : (wanted < shares ? wanted : shares);
  LowRankPlan plan;
  plan.down_row = PadDepthS8(args.k) * Type::kBytes;
  plan.up_row = PadDepthS8(args.rank) * Type::kBytes;
  plan.block_columns = (shares + splits - 1) / splits * kShare;
  plan.padded_rank = static_cast<int>(PadDepthS8(args.rank));
  plan.operand_row = Tile::OperandBytes(plan.padded_rank * Type::kBytes);
  plan.vector = (reinterpret_cast<uintptr_t>(args.x) | static_cast<uint64_t>(args.ldx) * Type::kBytes) % 16 == 0;
  const dim3 grid(static_cast<unsigned>(tiles),
                  static_cast<unsigned>((args.n + plan.block_columns - 1) / plan.block_columns));
  return TERSOR_LAUNCH(LowRank<Type>, grid, dim3(Tile::kThreads),
                       static_cast<size_t>(Tile::kOperandOffset + Tile::kTokens * plan.operand_row), stream, args,
                       plan);
}

}  // namespace

int LowRankF16(const LowRankArgs& args, void* stream) { return Launch<TypeF16>(args, stream); }
int LowRankS8(const LowRankArgs& args, void* stream) { return Launch<TypeS8>(args, stream); }

}  // namespace tersor::cuda

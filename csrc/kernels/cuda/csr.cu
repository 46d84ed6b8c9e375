// Very sparse weights in CSR. The activations of a few tokens are put into shared memory the other way round,
// [k][tokens], so that one read gives a column of all of them; then a warp takes a weight row at a time, a lane every
// 32nd of its non-zeros, and the lanes add up. Where even one token does not fit, a lane reads the activations where
// they lie. Int8 is exact. Float32 sums each lane's products in order, fused, and then the lanes in a tree: 32 partial
// sums.
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/tile_config.cuh"
#include "tersor/linear_s8.h"

namespace tersor::cuda {
namespace {

constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int kCsrThreads = 256, kCsrWarps = kCsrThreads / kWarp;
constexpr int kCsrShared = 96 * 1024;
static_assert(kCsrShared <= kSharedLimit, "activations fit");

struct CsrTypeS8 {
  using Value = int8_t;
  using Element = uint8_t;
  using Sum = int32_t;
  static __device__ __forceinline__ uint8_t Load(const CsrArgs& args, int64_t i) {
    return static_cast<const uint8_t*>(args.a)[i];
  }
  static __device__ __forceinline__ int32_t MultiplyAdd(int32_t sum, uint8_t x, int8_t w) {
    return sum + static_cast<int32_t>(x) * static_cast<int32_t>(w);
  }
};
struct CsrTypeF32 {
  using Value = float;
  using Element = float;
  using Sum = float;
  static __device__ __forceinline__ float Load(const CsrArgs& args, int64_t i) {
    return LoadElement(args.epilogue.dtype, args.a, i);
  }
  static __device__ __forceinline__ float MultiplyAdd(float sum, float x, float w) { return __fmaf_rn(x, w, sum); }
};

template <typename Element, int kTokens>
struct alignas(sizeof(Element) * kTokens) Column {
  Element x[kTokens];
};

__device__ __forceinline__ void FinishOne(const Epilogue& e, int64_t row, int64_t column, int32_t sum) {
  FinishElement(e, row, column, sum);
}
__device__ __forceinline__ void FinishOne(const Epilogue& e, int64_t row, int64_t column, float sum) {
  const float row_scale = e.row_scale != nullptr ? e.row_scale[row] : 1.0f;
  const float col_scale = e.col_scale != nullptr ? e.col_scale[column] : 1.0f;
  FinishElement(e, row, column, __fmul_rn(sum, __fmul_rn(row_scale, col_scale)));
}

// kStaged: the columns are in shared memory.
template <typename Type, int kTokens, bool kStaged>
__global__ void __launch_bounds__(kCsrThreads, 1) Csr(const CsrArgs args) {
  using StagedColumn = Column<typename Type::Element, kTokens>;
  TERSOR_DYNAMIC_SHARED(shared);
  StagedColumn* columns = reinterpret_cast<StagedColumn*>(shared);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t m0 = int64_t{blockIdx.y} * kTokens;
  int64_t tokens[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) tokens[t] = min(m0 + t, args.m - 1) * args.lda;
  if constexpr (kStaged) {
    for (int64_t p = threadIdx.x; p < args.k; p += kCsrThreads) {
      StagedColumn column;
#pragma unroll
      for (int t = 0; t < kTokens; ++t) column.x[t] = Type::Load(args, tokens[t] + p);
      columns[p] = column;
    }
    __syncthreads();
  }

  const auto* values = static_cast<const typename Type::Value*>(args.values);
  for (int64_t row = int64_t{blockIdx.x} * kCsrWarps + warp; row < args.n; row += int64_t{gridDim.x} * kCsrWarps) {
    typename Type::Sum sum[kTokens] = {};
    const int end = args.row_offsets[row + 1];
    for (int i = args.row_offsets[row] + lane; i < end; i += kWarp) {
      const auto w = values[i];
      const int64_t p = args.column_indices[i];
      StagedColumn column;
      if constexpr (kStaged) {
        column = columns[p];
      } else {
#pragma unroll
        for (int t = 0; t < kTokens; ++t) column.x[t] = Type::Load(args, tokens[t] + p);
      }
#pragma unroll
      for (int t = 0; t < kTokens; ++t) sum[t] = Type::MultiplyAdd(sum[t], column.x[t], w);
    }
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2)
#pragma unroll
      for (int t = 0; t < kTokens; ++t) sum[t] += __shfl_xor_sync(kAllLanes, sum[t], step);
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
      if (lane == t && m0 + t < args.m) FinishOne(args.epilogue, m0 + t, row, sum[t]);
  }
}

template <typename Type, int kTokens, bool kStaged>
int LaunchTokens(const CsrArgs& args, void* stream) {
  const size_t shared_bytes =
      kStaged ? static_cast<size_t>(args.k) * kTokens * sizeof(typename Type::Element) : size_t{0};
  // Few blocks a multiprocessor, each with many rows: putting the activations in place is paid once per block.
  const int64_t tokens = (args.m + kTokens - 1) / kTokens, rows = (args.n + kCsrWarps - 1) / kCsrWarps;
  const int64_t wanted = (int64_t{8} * ptx::MultiprocessorCount() + tokens - 1) / tokens;
  const int64_t blocks = wanted < 1 ? 1 : (wanted < rows ? wanted : rows);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(tokens));
  return TERSOR_LAUNCH((Csr<Type, kTokens, kStaged>), grid, dim3(kCsrThreads), shared_bytes, stream, args);
}

// As many tokens as there are, as fit, and as one read of 16 bytes gives.
template <typename Type>
int Launch(const CsrArgs& args, void* stream) {
  constexpr int64_t kBytes = sizeof(typename Type::Element);
  constexpr int kMost = kBytes == 1 ? 8 : 4;
  const int64_t fit = kCsrShared / (args.k * kBytes), tokens = fit < args.m ? fit : args.m;
  if constexpr (kBytes * kMaxDepthS8 > kCsrShared) {
    if (fit == 0) return LaunchTokens<Type, kMost, false>(args, stream);
  }
  if (tokens > 4 && fit >= kMost) return LaunchTokens<Type, kMost, true>(args, stream);
  if (tokens > 2 && fit >= 4) return LaunchTokens<Type, 4, true>(args, stream);
  if (tokens > 1) return LaunchTokens<Type, 2, true>(args, stream);
  return LaunchTokens<Type, 1, true>(args, stream);
}

}  // namespace

int CsrS8(const CsrArgs& args, void* stream) { return Launch<CsrTypeS8>(args, stream); }
int CsrF32(const CsrArgs& args, void* stream) { return Launch<CsrTypeF32>(args, stream); }

}  // namespace tersor::cuda

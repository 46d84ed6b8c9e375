// One block per row, 16 values per thread and step. Two passes, the second from cache: the range of the row and then
// its integers, as kernels/reference/linear_s8_ref.h has them. Exact: minimum and maximum do not depend on the order,
// and every other step is one correctly rounded operation on one value.
#include <cfloat>

#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/tile_config.cuh"

namespace tersor::cuda {
namespace {

constexpr int kValues = kQuantizeValues;

struct Sixteen {
  float v[kValues];
};

// Values [begin, begin + 16) of the row, zeros from k on, times input_scale. `vector`: every row is 16-byte aligned.
template <DType kDType>
__device__ __forceinline__ Sixteen LoadSixteen(const QuantizeRowsArgs& args, int64_t row, int64_t begin, bool vector) {
  Sixteen x = {};
  const int64_t offset = row * args.ldx + begin;
  if (vector && begin + kValues <= args.k) {
    if constexpr (kDType == DType::kF32) {
#pragma unroll
      for (int i = 0; i < kValues; i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(static_cast<const float*>(args.x) + offset + i);
        x.v[i] = four.x, x.v[i + 1] = four.y, x.v[i + 2] = four.z, x.v[i + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kValues; i += 8) {
        const uint4 eight = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(args.x) + offset + i);
        const uint32_t pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const uint32_t bits = pairs[j / 2] >> (16 * (j % 2)) & 0xffffu;
          x.v[i + j] = kDType == DType::kBf16 ? Bf16ToFloat(bits) : F16ToFloat(bits);
        }
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      if (begin + i < args.k) x.v[i] = LoadElement(kDType, args.x, offset + i);
  }
  if (args.input_scale != nullptr) {
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      if (begin + i < args.k) x.v[i] = __fmul_rn(x.v[i], args.input_scale[begin + i]);
  }
  return x;
}

struct Range {
  float lo, hi;
  int odd;  // whether a value is NaN or infinite
};

__device__ __forceinline__ Range Join(const Range& a, const Range& b) {
  return {b.lo < a.lo ? b.lo : a.lo, b.hi > a.hi ? b.hi : a.hi, a.odd | b.odd};
}

// Of the whole block, in every thread.
__device__ __forceinline__ Range JoinBlock(Range r, unsigned char* shared) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2)
    r = Join(r, {__shfl_xor_sync(0xffffffffu, r.lo, step), __shfl_xor_sync(0xffffffffu, r.hi, step),
                 __shfl_xor_sync(0xffffffffu, r.odd, step)});
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  if (warps == 1) return r;
  Range* all = reinterpret_cast<Range*>(shared);
  if (threadIdx.x % kWarp == 0) all[threadIdx.x / kWarp] = r;
  __syncthreads();
  for (int i = 0; i < warps; ++i) r = Join(r, all[i]);
  return r;
}

struct Row {
  float scale, inv_scale;
  int32_t zero;
};

__device__ __forceinline__ Row ChooseRow(const QuantizeRowsArgs& args, const Range& r) {
  if (r.odd != 0) return {__int_as_float(0x7fc00000), 0.0f, 0};
  if (args.x_scale > 0.0f) return {args.x_scale, __fdiv_rn(1.0f, args.x_scale), args.x_zero_point};
  const float width = __fsub_rn(__fdiv_rn(r.hi, 255.0f), __fdiv_rn(r.lo, 255.0f));
  const float scale = width > FLT_MIN ? width : FLT_MIN, inv_scale = __fdiv_rn(1.0f, scale);
  const int32_t zero = __float2int_rn(__fmul_rn(-r.lo, inv_scale));
  return {scale, inv_scale, zero > 255 ? 255 : zero};
}

template <DType kDType>
__global__ void __launch_bounds__(kQuantizeThreads)
    QuantizeRowsKernel(const QuantizeRowsArgs args, int64_t pad, bool vector) {
  TERSOR_DYNAMIC_SHARED(shared);
  const int64_t row = blockIdx.x, step = int64_t{blockDim.x} * kValues;
  Range range = {0.0f, 0.0f, 0};
  for (int64_t begin = int64_t{threadIdx.x} * kValues; begin < args.k; begin += step) {
    const Sixteen x = LoadSixteen<kDType>(args, row, begin, vector);
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      range = Join(range, {x.v[i], x.v[i], (__float_as_int(x.v[i]) & 0x7f800000) == 0x7f800000 ? 1 : 0});
  }
  const Row params = ChooseRow(args, JoinBlock(range, shared));
  const float lo = static_cast<float>(-params.zero), hi = static_cast<float>(255 - params.zero);
  const bool number = params.scale == params.scale;
  int32_t sum = 0;
  for (int64_t begin = int64_t{threadIdx.x} * kValues; begin < pad; begin += step) {
    const Sixteen x = LoadSixteen<kDType>(args, row, begin, vector);
    uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      float t = __fmul_rn(x.v[i], params.inv_scale);
      t = t > lo ? t : lo;
      t = t < hi ? t : hi;
      const int32_t q = number && begin + i < args.k ? __float2int_rn(t) + params.zero : 0;
      sum += q;
      words[i / 4] |= static_cast<uint32_t>(q) << (8 * (i % 4));
    }
    *reinterpret_cast<uint4*>(args.q + row * args.ldq + begin) = make_uint4(words[0], words[1], words[2], words[3]);
  }
  if (threadIdx.x == 0) {
    args.scale[row] = params.scale;
    args.zero_point[row] = params.zero;
  }
  if (args.row_sum == nullptr) return;
#pragma unroll
  for (int s = kWarp / 2; s > 0; s /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, s);
  int32_t* sums = reinterpret_cast<int32_t*>(shared + kQuantizeThreads / kWarp * sizeof(Range));
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned i = 1; i < blockDim.x / kWarp; ++i) sum += sums[i];
  args.row_sum[row] = sum;
}

template <DType kDType>
int LaunchQuantizeRows(const QuantizeRowsArgs& args, void* stream) {
  const int64_t wanted = (PadDepthS8(args.k) / kValues + kWarp - 1) / kWarp * kWarp;
  const int threads = wanted < kQuantizeThreads ? static_cast<int>(wanted) : kQuantizeThreads;
  const size_t shared_bytes = kQuantizeThreads / kWarp * (sizeof(Range) + sizeof(int32_t));
  const uint64_t element = kDType == DType::kF32 ? 4 : 2;
  const bool vector = ((reinterpret_cast<uintptr_t>(args.x) | static_cast<uint64_t>(args.ldx) * element) & 15) == 0;
  return TERSOR_LAUNCH(QuantizeRowsKernel<kDType>, dim3(static_cast<unsigned>(args.m)),
                       dim3(static_cast<unsigned>(threads)), shared_bytes, stream, args, PadDepthS8(args.k), vector);
}

}  // namespace

int QuantizeRows(const QuantizeRowsArgs& args, void* stream) {
  if (args.m < 0 || args.k < 1 || args.ldq % 16 != 0 || args.ldq < PadDepthS8(args.k)) return kInvalidValue;
  if (args.m == 0) return 0;
  switch (args.dtype) {
    case DType::kF32:
      return LaunchQuantizeRows<DType::kF32>(args, stream);
    case DType::kBf16:
      return LaunchQuantizeRows<DType::kBf16>(args, stream);
    case DType::kF16:
      return LaunchQuantizeRows<DType::kF16>(args, stream);
  }
  return kInvalidValue;
}

}  // namespace tersor::cuda

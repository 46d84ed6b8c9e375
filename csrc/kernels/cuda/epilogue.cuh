// From sums to y: float(acc - row_zero * col_sum) * (row_scale * col_scale) + bias (+ residual), then the activation.
// Every step is one correctly rounded intrinsic, which the compiler never contracts, and the activations are those of
// kernels/activation_math.h, so y has the bits of the CPU's. NaN is the one exception: it stays NaN, but a GPU does not
// keep its payload.
#pragma once
#include "kernels/cuda/ptx.cuh"

#define TERSOR_INLINE __device__ __forceinline__
#include "kernels/activation_math.h"
#include "tersor/cuda.h"

namespace tersor::cuda {
namespace {

// activation_math.h on one float.
struct DeviceLane {
  using F = float;
  static constexpr int64_t kLanes = 1;
  static __device__ __forceinline__ F Set(float v) { return v; }
  static __device__ __forceinline__ F Add(F a, F b) { return __fadd_rn(a, b); }
  static __device__ __forceinline__ F Sub(F a, F b) { return __fsub_rn(a, b); }
  static __device__ __forceinline__ F Mul(F a, F b) { return __fmul_rn(a, b); }
  static __device__ __forceinline__ F Div(F a, F b) { return __fdiv_rn(a, b); }
  static __device__ __forceinline__ F Fma(F a, F b, F c) { return __fmaf_rn(a, b, c); }
  static __device__ __forceinline__ F Fms(F a, F b, F c) { return __fmaf_rn(a, b, -c); }
  static __device__ __forceinline__ F Max(F a, F b) { return a > b ? a : b; }
  static __device__ __forceinline__ F Min(F a, F b) { return a < b ? a : b; }
  static __device__ __forceinline__ F Abs(F a) { return __int_as_float(__float_as_int(a) & 0x7fffffff); }
  static __device__ __forceinline__ F IfNegative(F v, F a, F b) { return v < 0.0f ? a : b; }
  static __device__ __forceinline__ F Scale(F x, F n) {
    const int i = __float_as_int(__fadd_rn(n, 0x1.8p23f)) - __float_as_int(0x1.8p23f), half = i >> 1;
    return __fmul_rn(__fmul_rn(x, __int_as_float((half + 127) << 23)), __int_as_float((i - half + 127) << 23));
  }
};

__device__ __forceinline__ float Activate(Activation activation, float v) {
  switch (activation) {
    case Activation::kNone:
      return v;
    case Activation::kRelu:
      return Relu<DeviceLane>(v);
    case Activation::kGelu:
      return Gelu<DeviceLane>(v);
    case Activation::kGeluTanh:
      return GeluTanh<DeviceLane>(v);
    case Activation::kSilu:
      return Silu<DeviceLane>(v);
  }
  return v;
}

__device__ __forceinline__ float Bf16ToFloat(uint32_t bits) { return __uint_as_float(bits << 16); }
__device__ __forceinline__ float F16ToFloat(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
__device__ __forceinline__ uint32_t FloatToBf16(float v) { return __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
__device__ __forceinline__ uint32_t FloatToF16(float v) { return __half_as_ushort(__float2half_rn(v)); }

// Element i of an array of `dtype`.
__device__ __forceinline__ float LoadElement(DType dtype, const void* array, int64_t i) {
  if (dtype == DType::kF32) return static_cast<const float*>(array)[i];
  const uint32_t bits = static_cast<const uint16_t*>(array)[i];
  return dtype == DType::kBf16 ? Bf16ToFloat(bits) : F16ToFloat(bits);
}

__device__ __forceinline__ void StoreElement(DType dtype, void* array, int64_t i, float v) {
  if (dtype == DType::kF32) {
    static_cast<float*>(array)[i] = v;
  } else {
    static_cast<uint16_t*>(array)[i] = static_cast<uint16_t>(dtype == DType::kBf16 ? FloatToBf16(v) : FloatToF16(v));
  }
}

__device__ __forceinline__ float ScaledSum(int32_t acc, int32_t row_zero, int32_t col_sum, float row_scale,
                                           float col_scale) {
  return __fmul_rn(__int2float_rn(acc - row_zero * col_sum), __fmul_rn(row_scale, col_scale));
}

// The rest of the way for one element.
__device__ __forceinline__ void FinishElement(const Epilogue& e, int64_t row, int64_t column, float scaled) {
  float v = __fadd_rn(scaled, e.bias != nullptr ? e.bias[column] : 0.0f);
  if (e.residual != nullptr) v = __fadd_rn(v, LoadElement(e.dtype, e.residual, row * e.ldr + column));
  StoreElement(e.dtype, e.y, row * e.ldy + column, Activate(e.activation, v));
}

__device__ __forceinline__ void FinishElement(const Epilogue& e, int64_t row, int64_t column, int32_t acc) {
  if (e.sums != nullptr) {
    e.sums[row * e.ldy + column] = acc;
    return;
  }
  FinishElement(e, row, column,
                ScaledSum(acc, e.row_zero[row], e.col_sum[column], e.row_scale[row], e.col_scale[column]));
}

// Four neighbouring columns at once, the first a multiple of 4.
struct ColumnQuad {
  float scale[4], bias[4];
  int32_t sum[4];
};

__device__ __forceinline__ ColumnQuad LoadColumns(const Epilogue& e, int64_t column, int64_t n) {
  ColumnQuad c = {};
  if (e.sums != nullptr) return c;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (column + i >= n) continue;
    c.scale[i] = e.col_scale != nullptr ? e.col_scale[column + i] : 1.0f;
    c.bias[i] = e.bias != nullptr ? e.bias[column + i] : 0.0f;
    c.sum[i] = e.col_sum != nullptr ? e.col_sum[column + i] : 0;
  }
  return c;
}

// Whether four neighbours of every row of an array can be moved at once; the same for all threads.
__device__ __forceinline__ bool QuadAligned(DType dtype, const void* array, int64_t stride) {
  const uint64_t bytes = dtype == DType::kF32 ? 4 : 2;
  return ((reinterpret_cast<uintptr_t>(array) | static_cast<uint64_t>(stride) * bytes) & (4 * bytes - 1)) == 0;
}

__device__ __forceinline__ void LoadQuad(DType dtype, const void* array, int64_t i, float (&v)[4]) {
  if (dtype == DType::kF32) {
    const float4 four = *reinterpret_cast<const float4*>(static_cast<const float*>(array) + i);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    return;
  }
  const uint2 bits = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(array) + i);
  const uint32_t half[4] = {bits.x & 0xffffu, bits.x >> 16, bits.y & 0xffffu, bits.y >> 16};
#pragma unroll
  for (int j = 0; j < 4; ++j) v[j] = dtype == DType::kBf16 ? Bf16ToFloat(half[j]) : F16ToFloat(half[j]);
}

__device__ __forceinline__ void StoreQuad(DType dtype, void* array, int64_t i, const float (&v)[4]) {
  if (dtype == DType::kF32) {
    *reinterpret_cast<float4*>(static_cast<float*>(array) + i) = make_float4(v[0], v[1], v[2], v[3]);
    return;
  }
  uint32_t half[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) half[j] = dtype == DType::kBf16 ? FloatToBf16(v[j]) : FloatToF16(v[j]);
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(array) + i) =
      make_uint2(half[0] | half[1] << 16, half[2] | half[3] << 16);
}

// scaled[i] is ScaledSum, or a float sum times its scale, for column + i; columns from n on are dropped.
__device__ __forceinline__ void FinishQuad(const Epilogue& e, int64_t row, int64_t column, int64_t n,
                                           const ColumnQuad& c, const float (&scaled)[4]) {
  const bool whole = column + 4 <= n;
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = __fadd_rn(scaled[i], c.bias[i]);
  if (e.residual != nullptr) {
    float r[4] = {};
    if (whole && QuadAligned(e.dtype, e.residual, e.ldr)) {
      LoadQuad(e.dtype, e.residual, row * e.ldr + column, r);
    } else {
      for (int i = 0; i < 4; ++i)
        if (column + i < n) r[i] = LoadElement(e.dtype, e.residual, row * e.ldr + column + i);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = __fadd_rn(v[i], r[i]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = Activate(e.activation, v[i]);
  if (whole && QuadAligned(e.dtype, e.y, e.ldy)) {
    StoreQuad(e.dtype, e.y, row * e.ldy + column, v);
    return;
  }
  for (int i = 0; i < 4; ++i)
    if (column + i < n) StoreElement(e.dtype, e.y, row * e.ldy + column + i, v[i]);
}

__device__ __forceinline__ void FinishQuad(const Epilogue& e, int64_t row, int64_t column, int64_t n,
                                           const ColumnQuad& c, const int32_t (&acc)[4]) {
  if (e.sums != nullptr) {
    for (int i = 0; i < 4; ++i)
      if (column + i < n) e.sums[row * e.ldy + column + i] = acc[i];
    return;
  }
  const float row_scale = e.row_scale[row];
  const int32_t row_zero = e.row_zero[row];
  float scaled[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) scaled[i] = ScaledSum(acc[i], row_zero, c.sum[i], row_scale, c.scale[i]);
  FinishQuad(e, row, column, n, c, scaled);
}

}  // namespace
}  // namespace tersor::cuda

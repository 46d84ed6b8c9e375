// The four kinds of activations that gemm_s8_skinny.cu multiplies by one piece (packed_s8.cuh) of int8 weights. The
// weights are the 16 rows of the matrix instruction, so up to 8 rows of x cost one. Each kind has
//   Acc            what is summed in
//   Fragment       what a lane holds of 8 rows of x for 32 values of k: row g
//   Load           it: x[offset .. ] of a row, `left` values to the end of the row; `vector`: rows aligned for 4 values
//   Multiply       c += piece * fragment
// The 16-bit instruction takes 16 values of k in an order of its own; since a sum has no order, its slots 2q, 2q + 1,
// 2q + 8, 2q + 9 are given 4q to 4q + 3, which is how bytes lie in a piece.
#pragma once
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/packed_s8.cuh"

namespace tersor::cuda {
namespace {

// A word of int8 as pairs of float16. The bytes of w + 128 under the exponent of 1024 are the numbers 1152 + w.
__device__ __forceinline__ void WidenF16(uint32_t word, uint32_t& low, uint32_t& high) {
  const uint32_t biased = word ^ 0x80808080u;
  low = ptx::SubtractF16x2(__byte_perm(biased, 0x64646464u, 0x4140), 0x64806480u);
  high = ptx::SubtractF16x2(__byte_perm(biased, 0x64646464u, 0x4342), 0x64806480u);
}

// As bfloat16, whose mantissa has 7 bits: the low 7 bits of w under the exponent of 128, minus 128 or, for a negative
// w, 256.
__device__ __forceinline__ void WidenBf16(uint32_t word, uint32_t& low, uint32_t& high) {
  const uint32_t rest = word & 0x7f7f7f7fu, sign = word & 0x80808080u;
  low = ptx::AddBf16x2(__byte_perm(rest, 0x43434343u, 0x4140), __byte_perm(sign, 0xc3c3c3c3u, 0x4140));
  high = ptx::AddBf16x2(__byte_perm(rest, 0x43434343u, 0x4342), __byte_perm(sign, 0xc3c3c3c3u, 0x4342));
}

// The A operand for half `h` of a piece: low bytes of rows g and g + 8, then their high bytes.
__device__ __forceinline__ void WidenPiece(bool bf16, const uint4& piece, int h, uint32_t (&a)[4]) {
  const uint32_t first = h == 0 ? piece.x : piece.y, second = h == 0 ? piece.z : piece.w;
  if (bf16) {
    WidenBf16(first, a[0], a[2]);
    WidenBf16(second, a[1], a[3]);
  } else {
    WidenF16(first, a[0], a[2]);
    WidenF16(second, a[1], a[3]);
  }
}

// Values offset .. offset + 3 of x as float32, times input_scale [k] at `depth`; zeros from `left` on.
template <DType kDType>
__device__ __forceinline__ void LoadFour(const void* x, int64_t offset, const float* input_scale, int64_t depth,
                                         int64_t left, bool vector, float (&v)[4]) {
  if (vector && left >= 4) {
    LoadQuad(kDType, x, offset, v);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = i < left ? LoadElement(kDType, x, offset + i) : 0.0f;
  }
  if (input_scale == nullptr) return;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < left) v[i] = __fmul_rn(v[i], input_scale[depth + i]);
}

struct InputU8 {
  using Acc = int32_t;
  static constexpr bool kInteger = true;
  struct Fragment {
    uint32_t b[2];
  };
  // Rows are padded: no end is looked for.
  static __device__ __forceinline__ Fragment Load(const void* x, int64_t offset, const float*, int64_t, int64_t, bool) {
    const uint8_t* four = static_cast<const uint8_t*>(x) + offset;
    return {{*reinterpret_cast<const uint32_t*>(four), *reinterpret_cast<const uint32_t*>(four + 16)}};
  }
  static __device__ __forceinline__ void Multiply(int32_t (&c)[4], const uint4& piece, const Fragment& f) {
    const uint32_t a[4] = {piece.x, piece.z, piece.y, piece.w};
    ptx::MmaS8U8(c, a, f.b);
  }
};

template <DType kDType>
struct Input16 {
  using Acc = float;
  static constexpr bool kInteger = false, kBf16 = kDType == DType::kBf16;
  struct Fragment {
    uint32_t b[2][2];
  };
  static __device__ __forceinline__ Fragment Load(const void* x, int64_t offset, const float* input_scale,
                                                  int64_t depth, int64_t left, bool vector) {
    Fragment f;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int skip = 16 * h;
      if (vector && input_scale == nullptr && left >= skip + 4) {
        const uint2 four = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(x) + offset + skip);
        f.b[h][0] = four.x, f.b[h][1] = four.y;
        continue;
      }
      float v[4];
      LoadFour<kDType>(x, offset + skip, input_scale, depth + skip, left - skip, vector, v);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        f.b[h][i] = kBf16 ? FloatToBf16(v[2 * i]) | FloatToBf16(v[2 * i + 1]) << 16
                          : FloatToF16(v[2 * i]) | FloatToF16(v[2 * i + 1]) << 16;
    }
    return f;
  }
  static __device__ __forceinline__ void Multiply(float (&c)[4], const uint4& piece, const Fragment& f) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t a[4];
      WidenPiece(kBf16, piece, h, a);
      if constexpr (kBf16)
        ptx::MmaBf16(c, a, f.b[h]);
      else
        ptx::MmaF16(c, a, f.b[h]);
    }
  }
};

// A float32 is the sum of three bfloat16, 8 bits of its mantissa each, so its products with int8 are exact.
struct InputF32 {
  using Acc = float;
  static constexpr bool kInteger = false;
  struct Fragment {
    uint32_t b[2][3][2];
  };
  static __device__ __forceinline__ void Cut(float v, uint32_t (&parts)[3]) {
    const uint32_t bits = __float_as_uint(v);
    if ((bits & 0x7f800000u) == 0x7f800000u) {
      parts[0] = (bits & 0x7fffffu) != 0 ? 0x7fc0u : bits >> 16;
      parts[1] = parts[2] = 0;
      return;
    }
    float rest = v;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const uint32_t top = __float_as_uint(rest) & 0xffff0000u;
      parts[i] = top >> 16;
      rest = __fsub_rn(rest, __uint_as_float(top));
    }
  }
  static __device__ __forceinline__ Fragment Load(const void* x, int64_t offset, const float* input_scale,
                                                  int64_t depth, int64_t left, bool vector) {
    Fragment f;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float v[4];
      LoadFour<DType::kF32>(x, offset + 16 * h, input_scale, depth + 16 * h, left - 16 * h, vector, v);
      uint32_t parts[4][3];
#pragma unroll
      for (int i = 0; i < 4; ++i) Cut(v[i], parts[i]);
#pragma unroll
      for (int p = 0; p < 3; ++p)
#pragma unroll
        for (int i = 0; i < 2; ++i) f.b[h][p][i] = parts[2 * i][p] | parts[2 * i + 1][p] << 16;
    }
    return f;
  }
  static __device__ __forceinline__ void Multiply(float (&c)[4], const uint4& piece, const Fragment& f) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t a[4];
      WidenPiece(true, piece, h, a);
#pragma unroll
      for (int p = 2; p >= 0; --p) ptx::MmaBf16(c, a, f.b[h][p]);
    }
  }
};

}  // namespace
}  // namespace tersor::cuda

// The CUDA launch API: plain C++, no CUDA headers. Every pointer is a device pointer, `stream` is a cudaStream_t, and
// every launcher returns 0 or the cudaError_t of the launch: it checks nothing that the caller can know, never
// synchronises and never allocates. docs/kernels.md has the numeric contract and, in "CUDA layouts", the operands.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tersor/error.h"
#include "tersor/types.h"

namespace tersor::cuda {

constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue: an argument that no kernel takes

// Rows of quantised activations are zero padded to a multiple of this, and so is k of a packed weight.
constexpr int64_t kDepthPadS8 = 64;
constexpr int64_t PadDepthS8(int64_t k) { return (k + kDepthPadS8 - 1) / kDepthPadS8 * kDepthPadS8; }

// What happens to a sum on its way to y, each step rounded once:
// y = act(float(acc - row_zero * col_sum) * (row_scale * col_scale) + bias (+ residual)).
// Kernels that sum in float have float(acc - ...) replaced by their sum; a null row_scale is 1, a null row_zero 0.
struct Epilogue {
  const float* row_scale;   // [m]
  const int32_t* row_zero;  // [m]
  const float* col_scale;   // [n]
  const int32_t* col_sum;   // [n] sum over k of W
  const float* bias;        // [n], or null
  const void* residual;     // [m][n] of `dtype`, row stride ldr elements, or null; may be y itself
  int64_t ldr;
  Activation activation;
  DType dtype;  // of y and residual
  void* y;      // [m][n], row stride ldy elements
  int64_t ldy;
  int32_t* sums;  // [m][n], row stride ldy, or null: the exact integers go here and all of the above is ignored
};

// --- Activations: q [m][ldq] uint8, scale [m], zero_point [m] of x * input_scale, as QuantizeRows of linear_s8.h.
struct QuantizeRowsArgs {
  int64_t m, k;
  const void* x;  // [m][k] of `dtype`, row stride ldx elements
  int64_t ldx;
  DType dtype;
  const float* input_scale;  // [k], or null
  float x_scale;             // > 0: static, with x_scale and x_zero_point for every row; 0: dynamic
  int32_t x_zero_point;
  uint8_t* q;  // columns k to PadDepthS8(k) become 0; 16-byte aligned, ldq a multiple of 16
  int64_t ldq;
  float* scale;
  int32_t* zero_point;
  int32_t* row_sum;  // [m] sum over k of q, or null
};
TERSOR_API int QuantizeRows(const QuantizeRowsArgs& args, void* stream);

// --- Dense int8.

// Bytes of W [n][k] in the order of the matrix instruction.
constexpr int64_t PackedBytesGemmS8(int64_t n, int64_t k) { return (n + 15) / 16 * 16 * PadDepthS8(k); }
// w [n][k], row stride ldw bytes, to packed (16-byte aligned) and col_sum [n]; and back. Each is one kernel.
TERSOR_API int PackGemmS8(int64_t n, int64_t k, const int8_t* w, int64_t ldw, void* packed, int32_t* col_sum,
                          void* stream);
TERSOR_API int UnpackGemmS8(int64_t n, int64_t k, const void* packed, int8_t* w, int64_t ldw, void* stream);

struct GemmS8Args {
  int64_t m, n, k;   // k <= kMaxDepthS8
  const uint8_t* a;  // [m][lda], 16-byte aligned, lda a multiple of 16 and at least PadDepthS8(k)
  int64_t lda;
  const void* packed;  // PackGemmS8
  Epilogue epilogue;
  // Scratch for few rows, where blocks share the depth of one tile: at least GemmS8WorkspaceBytes, or null, which
  // costs speed only. Zeroed once when it is allocated; calls that share it go to one stream.
  void* workspace;
  int64_t workspace_bytes;
  int32_t tile, splits;  // an index of kGemmS8Tiles and the blocks per tile, or -1 and 0: the launcher chooses
};
TERSOR_API int64_t GemmS8WorkspaceBytes(int64_t m, int64_t n, int64_t k);
TERSOR_API int GemmS8(const GemmS8Args& args, void* stream);

// Weight only, for few rows: y = act(sum(x * W) * col_scale + bias (+ residual)), summed in float32.
struct GemmS8SkinnyArgs {
  int64_t m, n, k;  // m <= kSkinnyRows
  const void* x;    // [m][k] of epilogue.dtype, row stride ldx elements
  int64_t ldx;
  const float* input_scale;  // [k], or null
  const void* packed;        // PackGemmS8
  Epilogue epilogue;         // row_scale, row_zero and col_sum are not read
  void* workspace;           // as in GemmS8Args
  int64_t workspace_bytes;
  int32_t splits;  // 0: the launcher chooses
};
constexpr int64_t kSkinnyRows = 16;
TERSOR_API int64_t GemmS8SkinnyWorkspaceBytes(int64_t m, int64_t n, int64_t k);
TERSOR_API int GemmS8Skinny(const GemmS8SkinnyArgs& args, void* stream);

// --- Sparse. a and lda as in GemmS8Args; x as in GemmS8SkinnyArgs, but m is free.

// 2:4: of every 4 consecutive k of a weight row at most 2 are not zero. values and metadata come from PackSparse24S8 or
// PackSparse24F16 of cuda_pack.h, as do the operands of the next two.
struct Sparse24Args {
  int64_t m, n, k;
  const void* a;         // uint8 [m][lda]; for Sparse24F16 float16, finite and zero from k to PadDepthS8(k)
  int64_t lda;           // elements
  const void* values;    // 16-byte aligned: the kept ones, in the order of the sparse matrix instruction
  const void* metadata;  // their places
  Epilogue epilogue;
};
TERSOR_API int Sparse24S8(const Sparse24Args& args, void* stream);
TERSOR_API int Sparse24F16(const Sparse24Args& args, void* stream);

// Unstructured: a bitmap and the non-zeros, expanded on the chip and multiplied densely.
struct BitmapS8Args {
  int64_t m, n, k;
  const uint8_t* a;
  int64_t lda;
  const uint32_t* bitmap;
  const int8_t* values;    // 16-byte aligned
  const int32_t* offsets;  // of each tile of 16 weight rows by 64 of k: its first 16 bytes of values
  Epilogue epilogue;
};
TERSOR_API int BitmapS8(const BitmapS8Args& args, void* stream);

// Dense blocks of 16 weight rows by 32 of k, in CSR order of blocks.
struct BlockS8Args {
  int64_t m, n, k;
  const uint8_t* a;
  int64_t lda;
  const void* values;             // 16-byte aligned
  const int32_t* row_offsets;     // [ceil(n / 16) + 1]
  const int32_t* column_indices;  // k / 32
  Epilogue epilogue;
};
TERSOR_API int BlockS8(const BlockS8Args& args, void* stream);

// Very sparse: one value and one column index per non-zero, ascending in each row.
struct CsrArgs {
  int64_t m, n, k;
  const void* a;               // uint8 [m][lda] for CsrS8; [m][lda] of epilogue.dtype for CsrF32
  int64_t lda;                 // elements
  const void* values;          // int8 or float32
  const int32_t* row_offsets;  // [n + 1]
  const uint16_t* column_indices;
  Epilogue epilogue;
};
TERSOR_API int CsrS8(const CsrArgs& args, void* stream);
TERSOR_API int CsrF32(const CsrArgs& args, void* stream);

// --- Low rank: y = epilogue(h up^T) with h = x down^T, [m][rank], which never leaves the chip. Each thread block
// computes h of its tokens for itself, so this is for many tokens or a small rank. LowRankF16: h is rounded to float16.
// LowRankS8: h = float(acc - row_zero * down_sum) * (row_scale * down_scale), quantised row by row as QuantizeRows
// does: the op is linear_s8 twice, bit for bit. The epilogue's row_scale and row_zero are those of x.
constexpr int64_t kMaxRank = 256;
struct LowRankArgs {
  int64_t m, n, k, rank;  // rank <= kMaxRank
  const void* x;     // LowRankS8: uint8 as GemmS8Args::a; LowRankF16: float16 [m][k], row stride ldx, any alignment
  int64_t ldx;       // elements
  const void* down;  // [rank][PadDepthS8(k)], zero padded, float16 or int8; 16-byte aligned, as is up
  const float* down_scale;  // [rank], LowRankS8 only
  const int32_t* down_sum;  // [rank] sum over k of down, LowRankS8 only
  const void* up;           // [n][PadDepthS8(rank)], zero padded
  Epilogue epilogue;        // col_sum is the sum over the rank of up
};
TERSOR_API int LowRankF16(const LowRankArgs& args, void* stream);
TERSOR_API int LowRankS8(const LowRankArgs& args, void* stream);

}  // namespace tersor::cuda

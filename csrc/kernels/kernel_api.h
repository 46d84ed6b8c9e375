// The contract between the framework (core/, ops/) and the kernels.
//
// Only plain data and function pointers cross this line. Kernel files are built with flags that the host may
// not have, and an inline function that they share with the rest of the library could be the copy that the
// linker keeps: everything in a kernel folder lives in an anonymous namespace but the KernelSet itself.
// Kernels never allocate, thread, throw, log or read the environment.
#pragma once
#include <cstddef>
#include <cstdint>

#include "tersor/types.h"

namespace tersor {

// Per-row quantisation of activations (docs/kernels.md, "Activations").
struct QuantizeKernel {
  const char* id;
  // range[0] = min(0, min x), range[1] = max(0, max x); both NaN when any x is NaN or infinite.
  void (*row_range)(int64_t k, const float* x, float* range);
  // q[i] = round_half_even(clamp(x[i] * inv_scale, -zero_point, 255 - zero_point)) + zero_point; returns sum q.
  int32_t (*quantize_row)(int64_t k, const float* x, float inv_scale, int32_t zero_point, uint8_t* q);
};

// bf16 and fp16 to and from fp32, round to nearest even, NaN stays NaN; and the product of two rows.
struct ConvertKernel {
  const char* id;
  void (*to_f32)(DType from, int64_t n, const void* src, float* dst);
  void (*from_f32)(DType to, int64_t n, const float* src, void* dst);
  // product[i] = a[i] * b[i]; product may be a.
  void (*multiply)(int64_t n, const float* a, const float* b, float* product);
};

// x[i] = activation(x[i]) in place, bit for bit the algorithm of docs/kernels.md.
struct ActivationKernel {
  const char* id;
  void (*apply)(Activation activation, int64_t n, float* x);
};

// One block of C = A W^T: m rows of A (uint8) against n columns that start at a panel.
struct GemmS8Args {
  int32_t m, n, k;   // k is not padded; a and the panels are, with zeros, to a multiple of kr
  const uint8_t* a;  // [m][round_up(k, kr)], row stride lda bytes
  int64_t lda;
  const void* panel;       // the first panel; the next one lies panel_bytes(k) further
  const int32_t* col_sum;  // [round_up(n, nr)] sum over k of W, per column

  // Exactly one of the two outputs is set.
  int32_t* acc;  // [m][n], row stride ld_acc: the exact integers sum(a * w)
  int64_t ld_acc;

  float* c;  // [m][n], row stride ldc
  int64_t ldc;
  const float* row_scale;   // [m]
  const int32_t* row_zero;  // [m]
  const float* col_scale;   // [round_up(n, nr)]
  const float* bias;        // [round_up(n, nr)], never null
  const float* residual;    // [m][n], row stride ldr, or null; may be c itself
  int64_t ldr;
  // What the op reads next, or null and 0: a kernel may fetch it into the cache while it computes.
  const char* ahead;
  int64_t ahead_bytes;
  // c = float(acc - row_zero * col_sum) * (row_scale * col_scale) + bias (+ residual): each step rounded once.
};

struct GemmS8Kernel {
  const char* id;      // gemm_s8_<mr>x<nr>_<isa>
  int32_t mr, nr, kr;  // nr divides kPackRowsS8
  size_t (*panel_bytes)(int32_t k);
  // Rows [0, n) of W, n <= nr, row stride ldw, into one panel, zero padded; and back.
  void (*pack_panel)(int32_t n, int32_t k, const int8_t* w, int64_t ldw, void* panel);
  void (*unpack_panel)(int32_t n, int32_t k, const void* panel, int8_t* w, int64_t ldw);
  void (*tile)(const GemmS8Args& args);  // m <= mr, n <= nr
  int32_t row_limit;                     // up to this m the op calls `rows` instead of `tile`
  void (*rows)(const GemmS8Args& args);  // m <= row_limit, any n: few rows at the speed of memory
};

// Sparse weights (docs/kernels.md, "Sparse weights"): a quad is 4 consecutive values of k of one weight row, and only
// quads that hold a non-zero are kept. A strip is a block of rows of x (tokens); for one block of k it lies in a panel
// of one record per quad, and every quad meets all tokens of the strip. Weight rows go in groups of `rows`, whose quads
// are interleaved: step s of a group holds one quad and one byte offset into the panel for each of its rows.
//
// In the form of columns, four values of k of any place make a quad: a step holds four offsets for each row, of records
// of one value of k each.
constexpr int32_t kBandRowsS8 = 64;
struct SpmmS8Args {
  int32_t tokens;           // live tokens of the strip; the rest up to a multiple of 16 may be computed
  int32_t groups;           // weight rows / rows, of one band of kBandRowsS8 weight rows at most
  const uint8_t* panel;     // readable for any 16-bit offset
  const int64_t* starts;    // [groups + 1]: the first step of each group
  const int8_t* quads;      // [steps][rows][4]
  const uint16_t* offsets;  // [steps][rows], columns: [steps][rows][4]
  const uint8_t* order;     // [groups][rows]: the weight row, an index into acc, y and the col_ arrays
  bool add;                 // to what acc holds: a later block of k
  int32_t* acc;             // [weight rows][strip]

  // The last block of k writes y instead, unless it is null; it may be the memory of acc.
  float* y;                 // [weight rows][strip]
  const float* row_scale;   // [strip]
  const int32_t* row_zero;  // [strip]
  const float* col_scale;   // [weight rows]
  const int32_t* col_sum;   // the same, never null
  const float* bias;        // the same
  // y = float(acc - row_zero * col_sum) * (row_scale * col_scale) + bias: each step rounded once.
};

// c = transpose of y (+ residual).
struct SpmmS8FinishArgs {
  int32_t m, n;    // tokens, columns of c
  const float* y;  // [round_up(n, 16)][strip]
  float* c;        // [m][n], row stride ldc
  int64_t ldc;
  const float* residual;  // [m][n], row stride ldr, or null; may be c itself
  int64_t ldr;
};

struct SpmmS8Kernel {
  const char* id;              // spmm_s8_<rows>x<strip>_<isa>
  int32_t rows, strip, depth;  // depth: the most values of k in a panel
  int32_t quad_bytes;          // of a record
  // a [tokens][k], row stride lda, into a panel. tokens is a multiple of 16; rows of a are readable, and the panel is
  // writable, to a multiple of 64 in k.
  void (*pack)(int32_t tokens, int32_t k, const uint8_t* a, int64_t lda, uint8_t* panel);
  void (*multiply)(const SpmmS8Args& args);
  void (*finish)(const SpmmS8FinishArgs& args);

  // The form of columns, or null: the ISA has it not. A record is `column_bytes`; records are of two classes by turns,
  // and of the four offsets of a quad the first two belong to the even class and the others to the odd one.
  int32_t column_bytes;
  int32_t quad_cost, columns_cost, arrange_cost;  // time of a step of either form, and of one column of `arrange`
  // From a panel of `pack`, which is overwritten: record i of `panel` is that of the value columns[i] of k, for i < k,
  // a multiple of 64. `quads`: the records of quads instead, of columns[4 i] to columns[4 i + 3].
  void (*arrange)(int32_t k, const uint16_t* columns, bool quads, uint8_t* packed, uint8_t* panel);
  void (*multiply_columns)(const SpmmS8Args& args);
};

// The other form of a sparse weight, for few rows of x (docs/kernels.md, "Few rows"): for each group of `rows` weight
// rows and each block of 64 values of k one mask per row, whose bit p says that value p is not zero, and all non-zeros
// in the order of the masks.
struct SpmmS8RowsArgs {
  int32_t m;               // rows of a, at most max_m
  int32_t groups, blocks;  // of weight rows, of k
  const uint8_t* a;        // [m][blocks * 64], row stride lda; what lies beyond k is zero
  int64_t lda;
  const uint64_t* masks;  // [groups][blocks][rows]
  const int8_t* values;   // readable to 64 beyond what the masks count from any of `starts`
  const int64_t* starts;  // [groups]: the first value of each group
  int32_t* acc;           // [m][groups * rows], row stride ld_acc: the exact sums
  int64_t ld_acc;
};

struct SpmmS8RowsKernel {
  const char* id;  // spmm_s8_rows_<rows>x64_<isa>
  int32_t rows, max_m;
  void (*multiply)(const SpmmS8RowsArgs& args);
};

// Sparse float weights (docs/kernels.md, "Sparse float weights"). A strip of tokens lies, for one block of k, in a
// panel [depth + 1][strip] whose last row is zeros. Weight rows go in groups of `rows`, whose non-zeros are
// interleaved: step s of a group holds one value and one byte offset into the panel for each of its rows. A row that
// has run out of non-zeros meets the row of zeros with -0, which leaves any sum as it is.
constexpr int32_t kBandRowsF32 = 64;
struct SpmmF32BandArgs {
  int32_t tokens;           // live tokens of the strip; the rest up to a multiple of 16 may be computed
  int32_t groups;           // weight rows / rows, of one band of kBandRowsF32 weight rows at most
  const float* panel;       // readable for any 16-bit offset; of `row`: [depth + 1], the one token
  const int64_t* starts;    // [groups + 1]: the first step of each group
  const float* values;      // [steps][rows]
  const uint16_t* offsets;  // [steps][rows]
  const uint8_t* order;     // [groups][rows]: the weight row, an index into acc and bias
  const float* bias;        // [weight rows]: what the sums begin with, or null: with what acc holds
  float* acc;               // [weight rows][strip]; of `row`: [weight rows]
  // sum = fma(x, value, sum), step by step.
};

struct SpmmF32FinishArgs {
  int32_t m, n;      // tokens, columns of c
  const float* acc;  // [round_up(n, 16)][strip]
  float* c;          // [m][n], row stride ldc
  int64_t ldc;
  const float* residual;  // [m][n], row stride ldr, or null; may be c itself
  int64_t ldr;
};

struct SpmmF32Kernel {
  const char* id;              // spmm_f32_<rows>x<strip>_<isa>
  int32_t rows, strip, depth;  // depth: values of k in a panel
  // x [tokens][k], row stride ldx, into a panel. tokens and k are multiples of 16; the row of zeros is left alone.
  void (*pack)(int32_t tokens, int32_t k, const float* x, int64_t ldx, float* panel);
  void (*multiply)(const SpmmF32BandArgs& args);
  void (*row)(const SpmmF32BandArgs& args);  // one token
  void (*finish)(const SpmmF32FinishArgs& args);
};

// What follows the exact sums of a convolution, a pooling or an addition (docs/conv.md, "Finish").
struct FinishS8Args {
  int32_t m, n;        // pixels, channels
  const int32_t* acc;  // [m][n], row stride ld_acc
  int64_t ld_acc;
  const int32_t* offset;    // [n]
  const float* scale;       // [n]
  const float* bias;        // [n]
  const uint8_t* residual;  // [m][n], row stride ldr, or null
  int64_t ldr;
  float residual_scale;
  int32_t residual_zero;
  float low, high;  // the activation: y clamped, NaN stays
  bool hard_swish;  // instead: y * clamp(y + 3, 0, 6) * fl(1 / 6)

  // Exactly one of the two outputs is set.
  float* y_f32;  // [m][n], row stride ldy
  uint8_t* y;    // the same: clamp(round_half_even(value * inv_scale), -zero, 255 - zero) + zero; any byte for NaN
  int64_t ldy;
  float inv_scale;
  int32_t zero;
  // value = act(float(acc - offset) * scale + bias (+ float(residual - residual_zero) * residual_scale)), each step
  // rounded once.
};

// A tile of a matrix kernel whose sums become bytes without being written.
struct GemmBytesS8Kernel {
  const char* id;    // gemm_bytes_s8_<mr>x<nr>_<isa>
  const char* gemm;  // the kernel whose panels it reads
  // m <= mr, n <= nr. Neither output of `args` is used, nor m, n, acc and y_f32 of `finish`; no hard_swish.
  void (*tile)(const GemmS8Args& args, const FinishS8Args& finish);
};

struct ConvS8Kernel {
  const char* id;  // conv_s8_<isa>
  void (*finish)(const FinishS8Args& args);
  void (*max)(int64_t n, const uint8_t* x, uint8_t* y);    // y = max(x, y)
  void (*sum)(int64_t n, const uint8_t* x, int32_t* acc);  // acc += x
};

// A row of pixels through a depthwise filter: acc[p][c] = sum over taps of x * w, exactly.
struct DepthwiseS8Args {
  int32_t pixels, channels;
  int32_t kernel_h, kernel_w;
  const uint8_t* const* rows;  // [kernel_h]: what the first tap of the first pixel meets; readable kDepthwiseSlack
                               // bytes beyond what the last tap of the last pixel meets
  int64_t pixel, tap;          // bytes from one output pixel's inputs to the next one's, from one tap to the next
  const void* weights;
  int32_t* acc;  // [pixels][round_up(channels, kDepthwiseBlock)], row stride ld_acc
  int64_t ld_acc;
};
constexpr int64_t kDepthwiseBlock = 64, kDepthwiseSlack = 64;

struct DepthwiseS8Kernel {
  const char* id;  // depthwise_s8_<isa>
  size_t (*bytes)(int32_t channels, int32_t kernel_h, int32_t kernel_w);
  // w [channels][kernel_h][kernel_w] into the kernel's layout, and back.
  void (*pack)(int32_t channels, int32_t kernel_h, int32_t kernel_w, const int8_t* w, void* weights);
  void (*unpack)(int32_t channels, int32_t kernel_h, int32_t kernel_w, const void* weights, int8_t* w);
  void (*row)(const DepthwiseS8Args& args);
  // Or null: the same without acc, finished to bytes. No residual, no hard_swish; m, n and acc of `finish` are not
  // used.
  void (*row_bytes)(const DepthwiseS8Args& args, const FinishS8Args& finish);
};

// One block of c = a W^T in float32 (docs/kernels.md, "Low rank"): m rows of a against n columns that start at a panel.
struct GemmF32Args {
  int32_t m, n, k;
  const float* a;  // [m][k], row stride lda
  int64_t lda;
  const float* panel;    // [k][nr]; the next one lies panel_stride floats further
  int64_t panel_stride;  // 0 is fine for one panel
  const float* bias;     // [round_up(n, nr)]: what the sums begin with, or null: with what c holds
  float* c;              // [m][n], row stride ldc
  int64_t ldc;
  const float* residual;  // [m][n], row stride ldr, or null: added to the sums at the end
  int64_t ldr;
  // sum = fma(a, w, sum) in the order of k.
};

struct GemmF32Kernel {
  const char* id;  // gemm_f32_<mr>x<nr>_<isa>
  int32_t mr, nr;
  void (*tile)(const GemmF32Args& args);  // m <= mr, any n
};

// The ceiling that int8 kernels are measured against: the ISA's best exact multiply-add on registers alone.
struct PeakKernel {
  const char* id;
  int64_t (*int8)(int64_t iterations);  // returns the multiply-adds done
};

// Attention of one head over int16 operands (docs/encoder.md, "Attention"). The panels of keys and of values hold pairs
// of neighbours along the sum, which is the depth of the head for the keys and the keys for the values.
constexpr int32_t kAttentionKeys = 128;  // keys of a block, the most that one call sees
constexpr int32_t kAttentionValueLimit = 2047, kAttentionWeightLimit = 8191;
struct AttentionArgs {
  int32_t rows, keys, depth;
  const int16_t* q;  // [rows][depth], row stride ldq; readable to one value beyond each row
  int64_t ldq;
  const float* q_scale;      // [rows], times the attention scale and log2(e)
  const int16_t* key_panel;  // of `pack`
  const int16_t* value_panel;
  const float* key_scale;  // [round_up(keys, 16)], zero padded
  const float*
      value_share;    // [round_up(keys, 16)], zero padded: scale of a value row / the largest * kAttentionWeightLimit
  float value_unit;   // the largest / kAttentionWeightLimit
  const float* bias;  // [rows][keys], row stride ld_bias, in units of log2, or null
  int64_t ld_bias;
  bool first, last;  // of the blocks of keys
  float* max;        // [rows], between the blocks
  float* sum;        // [rows]
  float* out;        // [rows][round_up(depth, 16)], row stride ld_out
  int64_t ld_out;
};

struct AttentionKernel {
  const char* id;  // attention_<rows>x<keys>_<isa>
  // q = round_half_even(x / scale) with the scale that makes the largest magnitude `limit`; NaN and zeros when x is not
  // finite. Returns the scale.
  float (*quantize_row)(int64_t n, const float* x, int32_t limit, int16_t* q);
  // keys, values [keys][depth], row stride ld, readable to round_up(depth, 32) values; each panel has room for
  // round_up(keys, 16) * round_up(depth, 16) values.
  void (*pack)(int32_t keys, int32_t depth, const int16_t* key, const int16_t* value, int64_t ld, int16_t* key_panel,
               int16_t* value_panel);
  void (*attend)(const AttentionArgs& args);
  void (*exp2)(int64_t n, float* x);  // in place, of x <= 0: what `attend` uses
};

// y = (x - mean) / sqrt(variance + eps) * gamma + beta of one row; y may be x.
struct NormKernel {
  const char* id;
  void (*layer_norm)(int64_t n, const float* x, const float* gamma, const float* beta, float eps, float* y);
};

struct Lut4Kernel;       // lut4_api.h
struct RecurrentKernel;  // recurrent_api.h
struct EmbeddingKernel;  // embedding_api.h

// Everything one ISA offers. A null member means "use the next set down". scalar has no null member but spmm_s8_rows
// and gemm_bytes_s8: where no set has that one, spmm_s8 serves few rows too.
struct KernelSet {
  const char* name;
  const QuantizeKernel* quantize;
  const ConvertKernel* convert;
  const ActivationKernel* activation;
  const ActivationKernel* activation_near;  // gelu off by at most 1.1e-5 |x|: for what is quantised to 8 bits next
  const GemmS8Kernel* gemm_s8;
  const PeakKernel* peak;
  const SpmmS8Kernel* spmm_s8;
  const SpmmF32Kernel* spmm_f32;
  const SpmmS8RowsKernel* spmm_s8_rows;
  const ConvS8Kernel* conv_s8;
  const DepthwiseS8Kernel* depthwise_s8;
  const GemmBytesS8Kernel* gemm_bytes_s8;
  const AttentionKernel* attention;
  const NormKernel* norm;
  const GemmF32Kernel* gemm_f32;
  const Lut4Kernel* lut4;
  const RecurrentKernel* recurrent;
  const EmbeddingKernel* embedding;
};

}  // namespace tersor

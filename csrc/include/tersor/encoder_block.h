// One encoder block of a transformer in one call: attention and feed-forward layers with int8 weights, their residuals
// and LayerNorms. docs/encoder.md has the numeric contract.
//
//   post-norm   h = LN1(x + out(attention(qkv(x))))         y = LN2(h + ffn_out(act(ffn_in(h))))
//   pre-norm    h = x + out(attention(qkv(LN1(x))))         y = h + ffn_out(act(ffn_in(LN2(h))))
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "tersor/executor.h"
#include "tersor/types.h"

namespace tersor {

struct EncoderBlockConfig {
  int64_t hidden, heads, head_dim, ffn;  // heads * head_dim, the width of attention, need not be hidden
  bool norm_first;                       // pre-norm
  Activation activation;                 // between the two feed-forward products
  float eps[2];                          // of LN1 and LN2
  float scale;                           // of the attention scores, usually 1 / sqrt(head_dim)
};
constexpr int64_t kMaxHeadDim = 512;

// The four products, in the order of their use: qkv (the rows of all heads of Q, then of K, then of V), out, ffn_in and
// ffn_out.
constexpr int kEncoderProducts = 4;
enum class EncoderWeightKind : int32_t { kDense = 0, kSparse = 1, kLowRank = 2 };
constexpr int kEncoderWeightKinds = 3;

// --- Packing. A packed block is one relocatable block of bytes that holds the packed weights of the four products.

struct EncoderBlockParts {
  const void* weight[kEncoderProducts];  // packed by PackBeginS8, PackSpmmS8 or PackLowRankS8
  size_t weight_bytes[kEncoderProducts];
  const float* bias[kEncoderProducts];  // [n] of the product, or null
  const float *gamma[2], *beta[2];      // [hidden], of LN1 and LN2
};

// Throws Error when the weights are not those of the configuration.
TERSOR_API size_t PackedBytesEncoderBlock(const EncoderBlockConfig& config, const EncoderBlockParts& parts);
TERSOR_API void PackEncoderBlock(const EncoderBlockConfig& config, const EncoderBlockParts& parts, void* packed,
                                 size_t packed_bytes);

struct EncoderBlockInfo {
  EncoderBlockConfig config;
  struct {
    EncoderWeightKind kind;
    int64_t n, k;
    size_t offset, bytes;  // of the packed weight in the block
    std::string kernel;
    size_t bias_offset;  // of [n] floats; zeros when there was none
  } product[kEncoderProducts];
  size_t gamma_offset[2], beta_offset[2];
  bool runnable;  // this CPU can run all four kernels
};
// Throws Error when the bytes are not a packed encoder block of this version, or are truncated or damaged.
TERSOR_API EncoderBlockInfo InspectEncoderBlock(const void* packed, size_t packed_bytes);

// The configuration alone, in a few nanoseconds. Throws Error as InspectEncoderBlock does, but for the packed weights.
TERSOR_API EncoderBlockConfig ConfigOfEncoderBlock(const void* packed, size_t packed_bytes);

// --- The op.

// Where the time goes: the four products, each with the quantisation of its input and its epilogue; Q, K and V to
// int16; attention; the LayerNorms; reading x and writing y.
enum EncoderPart { kPartQkv, kPartOut, kPartFfnIn, kPartFfnOut, kPartInt16, kPartAttention, kPartNorm, kPartRows };
constexpr int kEncoderParts = 8;

struct EncoderBlockArgs {
  int64_t batch, tokens;
  const void* x;  // [batch][tokens][hidden] of `dtype`, row stride ldx elements
  int64_t ldx;
  DType dtype;              // of x and y
  const uint8_t* keep;      // [batch][tokens], 0: padding, whose rows of y are zeros; null: every token is real
  const float* score_bias;  // [heads][tokens][tokens], added to the scaled scores, or null
  const void* packed;
  size_t packed_bytes;
  void* y;  // [batch][tokens][hidden], row stride ldy; may not be x
  int64_t ldy;
  double* seconds;  // [kEncoderParts], to which the first thread adds its time, or null
};
TERSOR_API void EncoderBlock(const EncoderBlockArgs& args, const Executor& executor);

// LayerNorm of one row, y = (x - mean) / sqrt(variance + eps) * gamma + beta, for tests and NumPy users.
TERSOR_API void LayerNorm(int64_t n, const float* x, const float* gamma, const float* beta, float eps, float* y);

}  // namespace tersor

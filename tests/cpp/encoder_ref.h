// An encoder block with its weights packed, and its result put together from the parts: linear_s8, the scalar kernels
// of attention and LayerNorm, one sequence at a time.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "attention_cases.h"
#include "check.h"
#include "ops/linear_s8_worker.h"
#include "ops/spmm_s8_worker.h"
#include "tersor/encoder_block.h"
#include "tersor/isa.h"
#include "tersor/linear_s8.h"
#include "tersor/spmm_s8.h"

namespace tersor::testing {

struct BlockCase {
  EncoderBlockConfig config;
  bool sparse;
  std::vector<int8_t> w[kEncoderProducts];
  std::vector<float> scale[kEncoderProducts], bias[kEncoderProducts], gamma[2], beta[2];
  int64_t n[kEncoderProducts], k[kEncoderProducts];
  std::vector<char> weight[kEncoderProducts], packed;

  BlockCase(EncoderBlockConfig c, uint64_t seed, bool is_sparse = false) : config(c), sparse(is_sparse) {
    Random random(seed);
    const int64_t width = c.heads * c.head_dim, ns[] = {3 * width, c.hidden, c.ffn, c.hidden},
                  ks[] = {c.hidden, width, c.hidden, c.ffn};
    for (int i = 0; i < kEncoderProducts; ++i) {
      n[i] = ns[i];
      k[i] = ks[i];
      for (int64_t j = 0; j < n[i] * k[i]; ++j)
        w[i].push_back(static_cast<int8_t>(sparse && random.Int(0, 9) < 7 ? 0 : random.Int(-127, 127)));
      for (int64_t j = 0; j < n[i]; ++j) {
        scale[i].push_back(random.Uniform(0.5f, 1.5f) / (64.0f * std::sqrt(static_cast<float>(k[i]))));
        bias[i].push_back(random.Uniform(-0.3f, 0.3f));
      }
    }
    for (int i = 0; i < 2; ++i)
      for (int64_t j = 0; j < c.hidden; ++j) {
        gamma[i].push_back(random.Uniform(0.5f, 1.5f));
        beta[i].push_back(random.Uniform(-0.3f, 0.3f));
      }
    Pack();
  }

  // For the active instruction set.
  void Pack() {
    EncoderBlockParts parts{};
    for (int i = 0; i < kEncoderProducts; ++i) {
      PackWeight(i);
      parts.weight[i] = weight[i].data();
      parts.weight_bytes[i] = weight[i].size();
      parts.bias[i] = bias[i].data();
    }
    for (int i = 0; i < 2; ++i) {
      parts.gamma[i] = gamma[i].data();
      parts.beta[i] = beta[i].data();
    }
    packed.assign(PackedBytesEncoderBlock(config, parts), 0);
    PackEncoderBlock(config, parts, packed.data(), packed.size());
  }

  std::vector<float> Multiply(int product, const std::vector<float>& x, const float* residual,
                              Activation activation) const {
    LinearS8Args g{};
    g.m = static_cast<int64_t>(x.size()) / k[product];
    g.x = x.data();
    g.ldx = k[product];
    g.packed = weight[product].data();
    g.packed_bytes = weight[product].size();
    g.bias = bias[product].data();
    g.residual = residual;
    g.ldr = n[product];
    g.activation = activation;
    std::vector<float> y(static_cast<size_t>(g.m * n[product]));
    g.y = y.data();
    g.ldy = n[product];
    Selection kernels = Selected();
    kernels.activation = RunnableKernelSets().front()->activation_near;
    (sparse ? SpmmS8With : LinearS8With)(kernels, g, SerialExecutor());
    return y;
  }

  std::vector<float> Normalize(int norm, std::vector<float> x) const {
    for (size_t at = 0; at < x.size(); at += static_cast<size_t>(config.hidden))
      RunnableKernelSets().front()->norm->layer_norm(config.hidden, x.data() + at, gamma[norm].data(),
                                                     beta[norm].data(), config.eps[norm], x.data() + at);
    return x;
  }

  // x [tokens][hidden], the real tokens of one sequence; score_bias [heads][tokens][tokens], or empty.
  std::vector<float> Expected(const std::vector<float>& x, const std::vector<float>& score_bias = {}) const {
    const bool first = config.norm_first;
    const std::vector<float> qkv = Multiply(0, first ? Normalize(0, x) : x, nullptr, Activation::kNone);
    std::vector<float> h = Multiply(1, AttendAll(qkv, score_bias), x.data(), Activation::kNone);
    if (!first) h = Normalize(0, h);
    const std::vector<float> inner = Multiply(2, first ? Normalize(1, h) : h, nullptr, config.activation);
    const std::vector<float> y = Multiply(3, inner, h.data(), Activation::kNone);
    return first ? y : Normalize(1, y);
  }

 private:
  void PackWeight(int i) {
    if (sparse) {
      weight[i].assign(PackedBytesSpmmS8(n[i], k[i], w[i].data()), 0);
      PackSpmmS8(n[i], k[i], w[i].data(), scale[i].data(), nullptr, weight[i].data(), weight[i].size());
      return;
    }
    weight[i].assign(PackedBytesS8(n[i], k[i]), 0);
    PackBeginS8(n[i], k[i], weight[i].data(), weight[i].size());
    PackRowsS8(0, n[i], w[i].data(), scale[i].data(), weight[i].data(), weight[i].size());
  }

  std::vector<float> AttendAll(const std::vector<float>& qkv, const std::vector<float>& score_bias) const;
};

// A token's Q, K and V have one scale each for all heads.
inline std::vector<float> BlockCase::AttendAll(const std::vector<float>& qkv,
                                               const std::vector<float>& score_bias) const {
  const AttentionKernel& kernel = *RunnableKernelSets().front()->attention;
  const int64_t width = config.heads * config.head_dim, tokens = static_cast<int64_t>(qkv.size()) / (3 * width);
  const int32_t limit = config.head_dim <= 128 ? 4095 : 2047;
  std::vector<float> out(static_cast<size_t>(tokens * width));
  std::vector<int16_t> row(static_cast<size_t>(width));
  std::vector<HeadOperands> heads(
      static_cast<size_t>(config.heads),
      HeadOperands(static_cast<int32_t>(tokens), static_cast<int32_t>(tokens), static_cast<int32_t>(config.head_dim)));
  for (int64_t t = 0; t < tokens; ++t)
    for (int p = 0; p < 3; ++p) {
      const float scale = kernel.quantize_row(width, qkv.data() + (3 * t + p) * width,
                                              p == 2 ? kAttentionValueLimit : limit, row.data());
      for (size_t h = 0; h < heads.size(); ++h) {
        std::copy_n(row.begin() + static_cast<int64_t>(h) * config.head_dim, config.head_dim,
                    heads[h].Row(p, static_cast<size_t>(t)));
        heads[h].scale[p][static_cast<size_t>(t)] = scale;
      }
    }
  for (int64_t head = 0; head < config.heads; ++head) {
    HeadOperands& operands = heads[static_cast<size_t>(head)];
    const auto bias = score_bias.begin() + (score_bias.empty() ? 0 : head * tokens * tokens);
    operands.SetScale(config.scale, {bias, bias + (score_bias.empty() ? 0 : tokens * tokens)});
    const std::vector<float> y = Attend(kernel, operands);
    for (int64_t t = 0; t < tokens; ++t)
      std::copy_n(y.begin() + t * config.head_dim, config.head_dim, out.begin() + t * width + head * config.head_dim);
  }
  return out;
}

}  // namespace tersor::testing

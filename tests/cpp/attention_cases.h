// One head of attention through a kernel, block of keys by block of keys, and by definition in double precision.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/registry.h"
#include "data.h"

namespace tersor::testing {

// Floats of one head: q [rows][depth], k and v [keys][depth].
struct AttentionCase {
  int32_t rows, keys, depth;
  float scale;
  std::vector<float> q, k, v, bias;  // bias [rows][keys], or empty

  AttentionCase(int32_t r, int32_t n, int32_t d, uint64_t seed, bool with_bias = false)
      : rows(r), keys(n), depth(d), scale(1.0f / std::sqrt(static_cast<float>(d))) {
    Random random(seed);
    const auto fill = [&](std::vector<float>& to, int32_t count) {
      for (int32_t i = 0; i < count; ++i) to.push_back(random.Uniform(-3.0f, 3.0f));
    };
    fill(q, rows * depth);
    fill(k, keys * depth);
    fill(v, keys * depth);
    for (int32_t j = 0; j < keys; ++j)  // rows of values of different sizes
      for (int32_t c = 0; c < depth; ++c) v[static_cast<size_t>(j * depth + c)] *= j % 3 == 0 ? 0.1f : 1.0f;
    if (with_bias) fill(bias, rows * keys);
  }
  int32_t limit() const { return depth <= 128 ? 4095 : 2047; }
};

constexpr float kLog2E = 0x1.715476p0f;

// One head as a kernel takes it: rows of int16 with a scale each, and what may be read beyond them.
struct HeadOperands {
  int32_t rows, keys, depth;
  int64_t ld;
  std::vector<int16_t> values[3];  // q, k, v
  std::vector<float> scale[3], bias;

  HeadOperands(int32_t r, int32_t n, int32_t d) : rows(r), keys(n), depth(d), ld(d + 32) {
    for (int p = 0; p < 3; ++p) {
      const size_t count = static_cast<size_t>(p == 0 ? rows : keys);
      values[p].resize(count * static_cast<size_t>(ld));
      scale[p].resize(count);
    }
  }
  HeadOperands(const AttentionKernel& kernel, const AttentionCase& c) : HeadOperands(c.rows, c.keys, c.depth) {
    const std::vector<float>* floats[] = {&c.q, &c.k, &c.v};
    for (int p = 0; p < 3; ++p)
      for (size_t i = 0; i < scale[p].size(); ++i)
        scale[p][i] = kernel.quantize_row(depth, floats[p]->data() + i * static_cast<size_t>(depth),
                                          p == 2 ? kAttentionValueLimit : c.limit(), Row(p, i));
    SetScale(c.scale, c.bias);
  }
  int16_t* Row(int part, size_t i) { return values[part].data() + i * static_cast<size_t>(ld); }
  // In units of log2.
  void SetScale(float factor, const std::vector<float>& natural_bias) {
    for (float& s : scale[0]) s *= factor * kLog2E;
    for (const float b : natural_bias) bias.push_back(b * kLog2E);
  }
};

// [rows][depth]
inline std::vector<float> Attend(const AttentionKernel& kernel, const HeadOperands& c) {
  const int64_t ld_out = (c.depth + 15) / 16 * 16;
  std::vector<float> max(static_cast<size_t>(c.rows)), sum(max), out(static_cast<size_t>(c.rows * ld_out));
  Fenced keys_memory(kAttentionKeys * 1024 * 2), values_memory(kAttentionKeys * 1024 * 2);
  for (int32_t begin = 0; begin < c.keys; begin += kAttentionKeys) {
    const int32_t live = std::min(kAttentionKeys, c.keys - begin), padded = (live + 15) / 16 * 16;
    const size_t panel = static_cast<size_t>(padded * ld_out);
    AttentionArgs g{};
    int16_t* key_panel = keys_memory.Place<int16_t>(panel);
    int16_t* value_panel = values_memory.Place<int16_t>(panel);
    kernel.pack(live, c.depth, c.values[1].data() + begin * c.ld, c.values[2].data() + begin * c.ld, c.ld, key_panel,
                value_panel);
    std::vector<float> key_scale(static_cast<size_t>(padded)), share(key_scale);
    float largest = 0.0f;
    for (int32_t j = 0; j < live; ++j) largest = std::fmax(largest, c.scale[2][static_cast<size_t>(begin + j)]);
    for (int32_t j = 0; j < live; ++j) {
      const size_t at = static_cast<size_t>(begin + j);
      key_scale[static_cast<size_t>(j)] = c.scale[1][at];
      share[static_cast<size_t>(j)] = c.scale[2][at] / largest * static_cast<float>(kAttentionWeightLimit);
      if (std::isnan(c.scale[2][at])) largest = c.scale[2][at];
    }
    g.rows = c.rows;
    g.keys = live;
    g.depth = c.depth;
    g.q = c.values[0].data();
    g.ldq = c.ld;
    g.q_scale = c.scale[0].data();
    g.key_panel = key_panel;
    g.value_panel = value_panel;
    g.key_scale = key_scale.data();
    g.value_share = share.data();
    g.value_unit = largest / static_cast<float>(kAttentionWeightLimit);
    g.bias = c.bias.empty() ? nullptr : c.bias.data() + begin;
    g.ld_bias = c.keys;
    g.first = begin == 0;
    g.last = begin + live == c.keys;
    g.max = max.data();
    g.sum = sum.data();
    g.out = out.data();
    g.ld_out = ld_out;
    kernel.attend(g);
  }
  std::vector<float> rows;
  for (int32_t i = 0; i < c.rows; ++i)
    rows.insert(rows.end(), out.begin() + i * ld_out, out.begin() + i * ld_out + c.depth);
  return rows;
}

inline std::vector<float> Attend(const AttentionKernel& kernel, const AttentionCase& c) {
  return Attend(kernel, HeadOperands(kernel, c));
}

// softmax(q k^T scale + bias) v, and how far a kernel may be from it.
struct ExactAttention {
  std::vector<double> out, bound;  // [rows][depth]

  explicit ExactAttention(const AttentionCase& c) {
    for (int32_t i = 0; i < c.rows; ++i) Row(c, i);
  }

 private:
  static double Largest(const float* x, int32_t n) {
    float largest = 0;
    for (int32_t d = 0; d < n; ++d) largest = std::fmax(largest, std::fabs(x[d]));
    return static_cast<double>(largest);
  }

  static double Magnitude(const float* x, int32_t n) {
    double sum = 0;
    for (int32_t d = 0; d < n; ++d) sum += std::fabs(static_cast<double>(x[d]));
    return sum;
  }

  // Scores are off by the rounding of q and k to half a step each, and by some roundings of float32; weights are then
  // off by a factor, and by half a step; values by half a step.
  void Row(const AttentionCase& c, int32_t i) {
    const float* q = c.q.data() + i * c.depth;
    const double q_half = 0.5 * Largest(q, c.depth) / c.limit();
    std::vector<double> s;
    double max = -INFINITY, score_error = 0, value_max = 0;
    for (int32_t j = 0; j < c.keys; ++j) {
      const float* k = c.k.data() + j * c.depth;
      const double k_half = 0.5 * Largest(k, c.depth) / c.limit();
      double dot = 0;
      for (int32_t d = 0; d < c.depth; ++d) dot += static_cast<double>(q[d]) * static_cast<double>(k[d]);
      const double error = Magnitude(q, c.depth) * k_half + Magnitude(k, c.depth) * q_half + c.depth * q_half * k_half;
      const double bias = c.bias.empty() ? 0 : static_cast<double>(c.bias[static_cast<size_t>(i * c.keys + j)]);
      s.push_back(dot * static_cast<double>(c.scale) + bias);
      max = std::fmax(max, s.back());
      score_error = std::fmax(
          score_error, error * static_cast<double>(c.scale) + 8 * 0x1p-24 * (std::fabs(s.back()) + std::fabs(bias)));
      value_max = std::fmax(value_max, Largest(c.v.data() + j * c.depth, c.depth));
    }
    double sum = 0;
    for (double& value : s) sum += value = std::exp(value - max);
    const double factor = std::exp(2 * score_error + (c.keys / 16 + 16) * 0x1p-24 + 0x1p-21) - 1;
    for (int32_t d = 0; d < c.depth; ++d) {
      double y = 0, magnitude = 0, steps = 0;
      for (int32_t j = 0; j < c.keys; ++j) {
        const double p = s[static_cast<size_t>(j)] / sum;
        const double term = p * static_cast<double>(c.v[static_cast<size_t>(j * c.depth + d)]);
        y += term;
        magnitude += std::fabs(term);
        steps += p * 0.5 * Largest(c.v.data() + j * c.depth, c.depth) / kAttentionValueLimit;
      }
      const double weights = 0.5 / kAttentionWeightLimit * value_max * c.keys / sum;
      out.push_back(y);
      bound.push_back((factor * magnitude + (1 + factor) * (steps + weights)) * (1 + 0x1p-18));
    }
  }
};

}  // namespace tersor::testing

// The sparse float product over a vector type: 4 weight rows by a strip of 32 tokens, panels of 256 values of k, 32
// KiB. Each non-zero is broadcast once and meets all tokens of the strip; the sums of a few rows stay in registers.
// Exact, that is equal to the definition bit for bit: a lane is one output, whose fused multiply-adds keep the order of
// k.
//
// Included only by kernels/<isa>/spmm_f32.cc, which supplies Lanes: F, kLanes (a divisor of 16), kRowsAtOnce (1, 2 or
// 4), Load, Store, Broadcast, Add, Fma(a, b, c) = a * b + c and Transpose of kLanes vectors.
#pragma once
#include <cstdint>
#include <cstring>

#include "kernels/kernel_api.h"

namespace {

using tersor::SpmmF32BandArgs;
using tersor::SpmmF32FinishArgs;

constexpr int32_t kRows = 4, kStrip = 32, kDepth = 256;
constexpr int32_t kRowBytes = kStrip * 4;  // of a panel
static_assert(kDepth * kRowBytes <= 65535, "offsets into a panel, its row of zeros included, fit 16 bits");

template <typename Lanes>
void PackStrip(int32_t tokens, int32_t k, const float* x, int64_t ldx, float* panel) {
  constexpr int32_t kLanes = Lanes::kLanes;
  for (int32_t token = 0; token < tokens; token += kLanes)
    for (int32_t p = 0; p < k; p += kLanes) {
      typename Lanes::F v[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) v[i] = Lanes::Load(x + (token + i) * ldx + p);
      Lanes::Transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) Lanes::Store(panel + (p + i) * kStrip + token, v[i]);
    }
}

// The rows [first, first + kRowsAtOnce) of one group, for kLive vectors of tokens.
template <typename Lanes, int kLive>
[[gnu::always_inline]] inline void MultiplyRows(const SpmmF32BandArgs& g, int32_t group, int32_t first) {
  constexpr int kLanes = Lanes::kLanes, kAtOnce = Lanes::kRowsAtOnce;
  const int64_t begin = g.starts[group] * kRows + first, end = g.starts[group + 1] * kRows + first;
  float* rows[kAtOnce];
  typename Lanes::F acc[kAtOnce][kLive];
#pragma GCC unroll 4
  for (int r = 0; r < kAtOnce; ++r) {
    const int32_t row = g.order[group * kRows + first + r];
    rows[r] = g.acc + row * kStrip;
#pragma GCC unroll 8
    for (int v = 0; v < kLive; ++v)
      acc[r][v] = g.bias != nullptr ? Lanes::Broadcast(g.bias + row) : Lanes::Load(rows[r] + v * kLanes);
  }
  for (int64_t at = begin; at < end; at += kRows) {
#pragma GCC unroll 4
    for (int r = 0; r < kAtOnce; ++r) {
      const char* tokens = reinterpret_cast<const char*>(g.panel) + g.offsets[at + r];
      const typename Lanes::F w = Lanes::Broadcast(g.values + at + r);
#pragma GCC unroll 8
      for (int v = 0; v < kLive; ++v)
        acc[r][v] = Lanes::Fma(Lanes::Load(reinterpret_cast<const float*>(tokens) + v * kLanes), w, acc[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kAtOnce; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kLive; ++v) Lanes::Store(rows[r] + v * kLanes, acc[r][v]);
}

template <typename Lanes, int kLive = kStrip / Lanes::kLanes>
void MultiplyStrip(const SpmmF32BandArgs& g) {
  if constexpr (kLive > 1)
    if (g.tokens <= (kLive - 1) * Lanes::kLanes) return MultiplyStrip<Lanes, kLive - 1>(g);
  for (int32_t group = 0; group < g.groups; ++group)
#pragma GCC unroll 1
    for (int32_t first = 0; first < kRows; first += Lanes::kRowsAtOnce) MultiplyRows<Lanes, kLive>(g, group, first);
}

// Memory sets the pace: 6 bytes a non-zero. The four rows are four chains of scalar multiply-adds.
inline void MultiplyRow(const SpmmF32BandArgs& g) {
  for (int32_t group = 0; group < g.groups; ++group) {
    const uint8_t* order = g.order + group * kRows;
    const float* begin = g.bias != nullptr ? g.bias : g.acc;
    float sum0 = begin[order[0]], sum1 = begin[order[1]], sum2 = begin[order[2]], sum3 = begin[order[3]];
    for (int64_t at = g.starts[group] * kRows; at < g.starts[group + 1] * kRows; at += kRows) {
      const uint16_t* offsets = g.offsets + at;
      const float* values = g.values + at;
      sum0 = __builtin_fmaf(g.panel[offsets[0] / kRowBytes], values[0], sum0);
      sum1 = __builtin_fmaf(g.panel[offsets[1] / kRowBytes], values[1], sum1);
      sum2 = __builtin_fmaf(g.panel[offsets[2] / kRowBytes], values[2], sum2);
      sum3 = __builtin_fmaf(g.panel[offsets[3] / kRowBytes], values[3], sum3);
    }
    g.acc[order[0]] = sum0;
    g.acc[order[1]] = sum1;
    g.acc[order[2]] = sum2;
    g.acc[order[3]] = sum3;
  }
}

// kLanes columns, from `column` on, for kLanes tokens.
template <typename Lanes>
[[gnu::always_inline]] inline void LoadBlock(const SpmmF32FinishArgs& g, int32_t column, int32_t token,
                                             typename Lanes::F* v) {
#pragma GCC unroll 16
  for (int i = 0; i < Lanes::kLanes; ++i) v[i] = Lanes::Load(g.acc + (column + i) * kStrip + token);
  Lanes::Transpose(v);
}

template <typename Lanes, bool kResidual>
[[gnu::always_inline]] inline void FinishBlock(const SpmmF32FinishArgs& g, int32_t column, int32_t token) {
  typename Lanes::F v[Lanes::kLanes];
  LoadBlock<Lanes>(g, column, token, v);
#pragma GCC unroll 16
  for (int i = 0; i < Lanes::kLanes; ++i) {
    if (kResidual) v[i] = Lanes::Add(v[i], Lanes::Load(g.residual + (token + i) * g.ldr + column));
    Lanes::Store(g.c + (token + i) * g.ldc + column, v[i]);
  }
}

// The same where fewer columns or tokens are left.
template <typename Lanes>
void FinishRest(const SpmmF32FinishArgs& g, int32_t column, int32_t token) {
  constexpr int32_t kLanes = Lanes::kLanes;
  typename Lanes::F v[kLanes];
  LoadBlock<Lanes>(g, column, token, v);
  float block[kLanes][kLanes];
  for (int i = 0; i < kLanes; ++i) Lanes::Store(block[i], v[i]);
  for (int64_t i = 0; i < kLanes && token + i < g.m; ++i)
    for (int64_t j = 0; j < kLanes && column + j < g.n; ++j) {
      const float y = block[i][j];
      g.c[(token + i) * g.ldc + column + j] =
          g.residual == nullptr ? y : y + g.residual[(token + i) * g.ldr + column + j];
    }
}

template <typename Lanes>
void FinishStrip(const SpmmF32FinishArgs& g) {
  constexpr int32_t kLanes = Lanes::kLanes;
  for (int32_t column = 0; column < g.n; column += kLanes)
    for (int32_t token = 0; token < g.m; token += kLanes) {
      if (column + kLanes > g.n || token + kLanes > g.m)
        FinishRest<Lanes>(g, column, token);
      else if (g.residual != nullptr)
        FinishBlock<Lanes, true>(g, column, token);
      else
        FinishBlock<Lanes, false>(g, column, token);
    }
}

template <typename Lanes>
constexpr tersor::SpmmF32Kernel StripKernel(const char* id) {
  return {id, kRows, kStrip, kDepth, PackStrip<Lanes>, MultiplyStrip<Lanes>, MultiplyRow, FinishStrip<Lanes>};
}

}  // namespace

// The sparse int8 product over a vector type: every quad of weights is broadcast once and meets all tokens of a strip;
// the sums of a group of weight rows stay in registers. The quads and the offsets of a step are read with one load
// each, because the tokens keep the load ports busy. docs/kernels.md draws the panel.
//
// Included only by kernels/<isa>/spmm_s8.cc, which defines, in its own anonymous namespace, a type V:
//   I, F                   vectors of kLanes int32 and float lanes, kLanes a divisor of 16
//   kRows, kVectors        a group is kRows weight rows (4 at most), a strip kVectors * kLanes tokens
//   kTokenBytes            of one quad of one token, in the panel
//   kDepth                 the most values of k in a panel, a multiple of 64
//   kSumShift              the sums begin with col_sum << kSumShift, 0: with nothing
//   Quads, Weights         the quads of a step as loaded, and one of them, broadcast
//   LoadQuads(q), Quad<r>(quads)
//   MulAdd(acc, tokens, w) acc + the products of kLanes tokens, exactly
//   StoreTokens(p, quads)  one quad each of kLanes tokens, into the panel
//   Transpose(F* v)        kLanes vectors of kLanes
//   Set, Load, Store, AsInt, AsFloat and the arithmetic of the epilogue
#pragma once
#include <cstring>
#include <utility>

#include "kernels/kernel_api.h"

#define TERSOR_UNROLL _Pragma("GCC unroll 16")

namespace {

template <typename V>
struct Strip {
  using I = typename V::I;
  using F = typename V::F;
  static constexpr int32_t kLanes = V::kLanes, kRows = V::kRows, kStrip = kLanes * V::kVectors;
  static constexpr int32_t kQuadBytes = kStrip * V::kTokenBytes;
  static_assert(V::kDepth / 4 * kQuadBytes <= 65536, "offsets into a panel fit 16 bits");
  static_assert(V::kDepth % 64 == 0, "panels are packed in blocks of 64 values of k");
  static_assert(kRows <= 4, "the offsets of a step fit 64 bits");

  static void Pack(int32_t tokens, int32_t k, const uint8_t* a, int64_t lda, uint8_t* panel) {
    for (int32_t token = 0; token < tokens; token += kLanes)
      for (int32_t p = 0; p < k; p += 4 * kLanes) {
        F v[kLanes];
        TERSOR_UNROLL
        for (int i = 0; i < kLanes; ++i) v[i] = V::AsFloat(V::LoadBytes(a + (token + i) * lda + p));
        V::Transpose(v);
        uint8_t* to = panel + p / 4 * kQuadBytes + token * V::kTokenBytes;
        TERSOR_UNROLL
        for (int i = 0; i < kLanes; ++i) V::StoreTokens(to + i * kQuadBytes, V::AsInt(v[i]));
      }
  }

  // The sums of one group, for kLive vectors of tokens.
  template <int kLive>
  struct Group {
    I acc[kRows][kLive];

    [[gnu::always_inline]] void Begin(const tersor::SpmmS8Args& g, const uint8_t* order) {
      TERSOR_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const int32_t* from = g.acc + int64_t{order[r]} * kStrip;
        TERSOR_UNROLL
        for (int v = 0; v < kLive; ++v)
          acc[r][v] = g.add ? V::Load(from + v * kLanes)
                            : V::Set(V::kSumShift > 0 ? g.col_sum[order[r]] * (1 << V::kSumShift) : 0);
      }
    }

    template <int... r>
    [[gnu::always_inline]] void Step(const uint8_t* panel, const int8_t* quads, const uint16_t* offsets,
                                     std::integer_sequence<int, r...>) {
      const typename V::Quads w = V::LoadQuads(quads);
      uint64_t at = 0;
      std::memcpy(&at, offsets, sizeof *offsets * kRows);
      (Meet(acc[r], panel + static_cast<uint16_t>(at >> (16 * r)), V::template Quad<r>(w)), ...);
    }

    [[gnu::always_inline]] static void Meet(I* sums, const uint8_t* tokens, typename V::Weights w) {
      TERSOR_UNROLL
      for (int v = 0; v < kLive; ++v) sums[v] = V::MulAdd(sums[v], tokens + v * kLanes * V::kTokenBytes, w);
    }

    [[gnu::always_inline]] void Store(const tersor::SpmmS8Args& g, const uint8_t* order) const {
      TERSOR_UNROLL
      for (int r = 0; r < kRows; ++r) {
        TERSOR_UNROLL
        for (int v = 0; v < kLive; ++v) V::Store(g.acc + int64_t{order[r]} * kStrip + v * kLanes, acc[r][v]);
      }
    }

    [[gnu::always_inline]] void Scale(const tersor::SpmmS8Args& g, const uint8_t* order) const {
      I zero[kLive];
      F row_scale[kLive];
      TERSOR_UNROLL
      for (int v = 0; v < kLive; ++v) {
        zero[v] = V::Load(g.row_zero + v * kLanes);
        row_scale[v] = V::Load(g.row_scale + v * kLanes);
      }
      TERSOR_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const int32_t row = order[r];
        float* to = g.y + int64_t{row} * kStrip;
        const I col_sum = V::Set(g.col_sum[row]);
        const F col_scale = V::Set(g.col_scale[row]), bias = V::Set(g.bias[row]);
        TERSOR_UNROLL
        for (int v = 0; v < kLive; ++v) {
          const F t = V::ToFloat(V::Sub(acc[r][v], V::Mul(zero[v], col_sum)));
          const F scale = V::Mul(row_scale[v], col_scale);
          V::Store(to + v * kLanes, V::Add(V::Mul(t, scale), bias));
        }
      }
    }
  };

  template <int kLive>
  static void MultiplyLive(const tersor::SpmmS8Args& g) {
    const int8_t* quads = g.quads + g.starts[0] * kRows * 4;
    const uint16_t* offsets = g.offsets + g.starts[0] * kRows;
    for (int32_t i = 0; i < g.groups; ++i) {
      const uint8_t* order = g.order + i * kRows;
      Group<kLive> group;
      group.Begin(g, order);
      for (int64_t steps = g.starts[i + 1] - g.starts[i]; steps > 0; --steps) {
        group.Step(g.panel, quads, offsets, std::make_integer_sequence<int, kRows>());
        quads += kRows * 4;
        offsets += kRows;
      }
      if (g.y == nullptr)
        group.Store(g, order);
      else
        group.Scale(g, order);
    }
  }

  template <int kLive = V::kVectors>
  static void Multiply(const tersor::SpmmS8Args& g) {
    if constexpr (kLive > 1)
      if (g.tokens <= (kLive - 1) * kLanes) return Multiply<kLive - 1>(g);
    MultiplyLive<kLive>(g);
  }

  // Row by row of c, kLanes columns of y.
  [[gnu::always_inline]] static void LoadTransposed(const float* y, F* v) {
    TERSOR_UNROLL
    for (int i = 0; i < kLanes; ++i) v[i] = V::Load(y + i * kStrip);
    V::Transpose(v);
  }

  template <bool kResidual>
  static void FinishBlock(const float* y, float* c, int64_t ldc, const float* residual, int64_t ldr) {
    F v[kLanes];
    LoadTransposed(y, v);
    TERSOR_UNROLL
    for (int i = 0; i < kLanes; ++i)
      V::Store(c + i * ldc, kResidual ? V::Add(v[i], V::Load(residual + i * ldr)) : v[i]);
  }

  // The edges of the output, where part of a block exists.
  static void FinishPart(const tersor::SpmmS8FinishArgs& g, int32_t token, int32_t column) {
    F v[kLanes];
    LoadTransposed(g.y + column * kStrip + token, v);
    const int32_t live = g.n - column < kLanes ? g.n - column : kLanes;
    const size_t bytes = static_cast<size_t>(live) * sizeof(float);
    for (int32_t i = 0; i < kLanes && token + i < g.m; ++i) {
      float values[kLanes], added[kLanes] = {};
      const int64_t row = token + i;
      if (g.residual != nullptr) std::memcpy(added, g.residual + row * g.ldr + column, bytes);
      V::Store(values, g.residual != nullptr ? V::Add(v[i], V::Load(added)) : v[i]);
      std::memcpy(g.c + row * g.ldc + column, values, bytes);
    }
  }

  static void Finish(const tersor::SpmmS8FinishArgs& g) {
    for (int32_t token = 0; token < g.m; token += kLanes)
      for (int32_t column = 0; column < g.n; column += kLanes) {
        const float* y = g.y + column * kStrip + token;
        float* c = g.c + token * g.ldc + column;
        if (g.n - column < kLanes || g.m - token < kLanes)
          FinishPart(g, token, column);
        else if (g.residual != nullptr)
          FinishBlock<true>(y, c, g.ldc, g.residual + token * g.ldr + column, g.ldr);
        else
          FinishBlock<false>(y, c, g.ldc, nullptr, 0);
      }
  }

  static constexpr tersor::SpmmS8Kernel Kernel(const char* id) {
    tersor::SpmmS8Kernel kernel{};
    kernel.id = id;
    kernel.rows = kRows;
    kernel.strip = kStrip;
    kernel.depth = V::kDepth;
    kernel.quad_bytes = kQuadBytes;
    kernel.pack = Pack;
    kernel.multiply = Multiply<>;
    kernel.finish = Finish;
    return kernel;
  }
};

}  // namespace

#undef TERSOR_UNROLL

// Few rows against weights that are codes, over a vector type: 32 values of k of some weight rows are looked up in
// registers and multiplied with 32 bytes of x, which all of them share. docs/kernels.md draws the panel.
//
// Included only by kernels/<isa>/lut4.cc, which defines, in its own anonymous namespace, a type V:
//   W, kPlaces           int8 vector of 16 values for each of kPlaces weight rows
//   Load, Low, High      16 bytes of codes a place, and their halves;  Look(table, codes): a table for each place
//   X                    16 values of x;  LoadX(p), LoadX(p, live): only the first `live` of the 16 are multiplied
//   kSigned              x - 128 is what LoadX gives
//   Sums, Zero, MulAdd   exact sums of products, several to a place
//   kAtOnce(m)           vectors that are summed side by side, a divisor of 16 / kPlaces
//   Reduce(sums, place, out)   kAtOnce vectors from this place on, one integer a place, to out[16], in order of places
//   StorePlace(w, i, to)       16 values
#pragma once
#include <cstring>

#include "kernels/lut4_api.h"

#define TERSOR_UNROLL _Pragma("GCC unroll 16")

namespace {

using tersor::kPanelRowsLut4;
using tersor::kStepLut4;
using tersor::Lut4Panel;
using tersor::Lut4RowsArgs;
using tersor::Lut4Tables;

constexpr int32_t kStepBytes = kPanelRowsLut4 * 16;
constexpr int32_t kAhead = 4096;  // bytes of codes that are fetched before they are needed: decoding leaves no room to

constexpr int32_t RowOfPlace(int32_t place) { return 4 * (place % 4) + place / 4; }

struct Part {
  const uint8_t *table, *codes;
  const float* scale;
  const int32_t* col_sum;
  int32_t begin, k;  // its values of k
};

inline Part PartOf(const Lut4Panel& panel, int32_t index) {
  const bool shared = panel.tables == Lut4Tables::kPerPanel, own = panel.tables == Lut4Tables::kPerPart;
  const uint8_t* part = panel.data + (shared ? kStepBytes : 0) + index * panel.part_bytes;
  const uint8_t* scale = part + (own ? kStepBytes : 0);
  const int32_t begin = index * panel.depth, left = panel.k - begin;
  return {own ? part : panel.data,
          scale + 128,
          reinterpret_cast<const float*>(scale),
          reinterpret_cast<const int32_t*>(scale + 64),
          begin,
          left < panel.depth ? left : panel.depth};
}

// The values of a step from k 0 on, or from 16 on.
template <typename V, bool kWide, bool kUpper>
[[gnu::always_inline]] inline typename V::W Decode(const uint8_t* step, int32_t place, const typename V::W& table) {
  if constexpr (kWide) {
    return V::Load(step + (kUpper ? kStepBytes : 0) + place * 16);
  } else {
    const typename V::W codes = V::Load(step + place * 16);
    return V::Look(table, kUpper ? V::High(codes) : V::Low(codes));
  }
}

// The sums of kAtOnce vectors of places over one part.
template <typename V, int kM, bool kWide>
struct Block {
  static constexpr int kVectors = V::AtOnce(kM);
  typename V::Sums sums[kM][kVectors];
  typename V::W table[kVectors];

  // a: the values of x that meet these; of the last step of a part only `live` of the 16 count.
  template <bool kUpper, bool kLast>
  [[gnu::always_inline]] void Half(const uint8_t* step, int32_t place, const uint8_t* a, int64_t lda, int32_t live) {
    typename V::X x[kM];
    TERSOR_UNROLL
    for (int i = 0; i < kM; ++i) x[i] = kLast ? V::LoadX(a + i * lda, live) : V::LoadX(a + i * lda);
    TERSOR_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const typename V::W w = Decode<V, kWide, kUpper>(step, place + v * V::kPlaces, table[v]);
      TERSOR_UNROLL
      for (int i = 0; i < kM; ++i) sums[i][v] = V::MulAdd(sums[i][v], w, x[i]);
    }
  }

  [[gnu::always_inline]] void Multiply(const Part& part, const uint8_t* a, int64_t lda, int32_t place) {
    constexpr int32_t kBytes = kStepBytes * (kWide ? 2 : 1);
    for (int32_t line = -128; line < 0; line += 64) __builtin_prefetch(part.codes + kAhead + line);
    TERSOR_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      table[v] = V::Load(part.table + (place + v * V::kPlaces) * 16);
      TERSOR_UNROLL
      for (int i = 0; i < kM; ++i) sums[i][v] = V::Zero();
    }
    const uint8_t* step = part.codes;
    int32_t left = part.k;
    for (; left >= kStepLut4; left -= kStepLut4, step += kBytes, a += kStepLut4) {
      TERSOR_UNROLL
      for (int32_t line = 0; line < kBytes; line += 64) __builtin_prefetch(step + kAhead + line);
      Half<false, false>(step, place, a, lda, 16);
      Half<true, false>(step, place, a + 16, lda, 16);
    }
    if (left == 0) return;
    Half<false, true>(step, place, a, lda, left);
    Half<true, true>(step, place, a + 16, lda, left - 16);
  }
};

template <typename V, int kM, bool kWide>
void OnePanel(const Lut4RowsArgs& g, const Lut4Panel& panel, const float* bias, const float* residual, float* to) {
  float y[kM][kPanelRowsLut4];
  for (int32_t p = 0; p < panel.parts; ++p) {
    const Part part = PartOf(panel, p);
    int32_t places[kM][kPanelRowsLut4];
    constexpr int32_t kAtOnce = V::AtOnce(kM) * V::kPlaces;
    for (int32_t place = 0; place < kPanelRowsLut4; place += kAtOnce) {
      Block<V, kM, kWide> block;
      block.Multiply(part, g.a + part.begin, g.lda, place);
      TERSOR_UNROLL
      for (int i = 0; i < kM; ++i) V::template Reduce<V::AtOnce(kM)>(block.sums[i], places[i] + place);
    }
    TERSOR_UNROLL
    for (int i = 0; i < kM; ++i) {
      int32_t sums[kPanelRowsLut4];
      V::ToRows(places[i], sums);
      const int32_t zero = V::kSigned ? g.row_zero[i] - 128 : g.row_zero[i];
      float term[kPanelRowsLut4];
      for (int32_t j = 0; j < kPanelRowsLut4; ++j)
        term[j] = static_cast<float>(sums[j] - zero * part.col_sum[j]) * (g.row_scale[i] * part.scale[j]);
      if (p > 0) {
        for (int32_t j = 0; j < kPanelRowsLut4; ++j) y[i][j] = (term[j] + 0.0f) + y[i][j];
      } else {
        for (int32_t j = 0; j < kPanelRowsLut4; ++j) y[i][j] = term[j] + bias[j];
        if (residual != nullptr)
          for (int32_t j = 0; j < kPanelRowsLut4; ++j) y[i][j] = y[i][j] + residual[i * g.ldy + j];
      }
    }
  }
  for (int i = 0; i < kM; ++i) std::memcpy(to + i * g.ldy, y[i], sizeof y[i]);
}

template <typename V, int kM, bool kWide>
void Panels(const Lut4RowsArgs& g) {
  Lut4Panel panel = g.panel;
  for (int32_t i = 0; i < g.panels; ++i, panel.data += g.panel_bytes) {
    const int32_t column = i * kPanelRowsLut4;
    OnePanel<V, kM, kWide>(g, panel, g.bias + column, g.residual == nullptr ? nullptr : g.residual + column,
                           g.y + column);
  }
}

constexpr int32_t kMaxM = 4;

template <typename V>
void Rows(const Lut4RowsArgs& g) {
  using Fn = void (*)(const Lut4RowsArgs&);
  static constexpr Fn kNarrow[kMaxM] = {Panels<V, 1, false>, Panels<V, 2, false>, Panels<V, 3, false>,
                                        Panels<V, 4, false>};
  static constexpr Fn kWide[kMaxM] = {Panels<V, 1, true>, Panels<V, 2, true>, Panels<V, 3, true>, Panels<V, 4, true>};
  (g.panel.tables == Lut4Tables::kWide ? kWide : kNarrow)[g.m - 1](g);
}

template <typename V, bool kWide>
void DecodeSteps(const Lut4Panel& panel, int32_t begin, int32_t count, int8_t* w, int64_t ldw) {
  for (int32_t k = 0; k < count; k += kStepLut4) {
    const Part part = PartOf(panel, (begin + k) / panel.depth);
    const uint8_t* step = part.codes + int64_t{begin + k - part.begin} / kStepLut4 * kStepBytes * (kWide ? 2 : 1);
    TERSOR_UNROLL
    for (int32_t place = 0; place < kPanelRowsLut4; place += V::kPlaces) {
      const typename V::W table = V::Load(part.table + place * 16);
      int8_t values[2][16 * V::kPlaces];
      V::Store(values[0], Decode<V, kWide, false>(step, place, table));
      V::Store(values[1], Decode<V, kWide, true>(step, place, table));
      for (int32_t i = 0; i < V::kPlaces; ++i)
        for (int h = 0; h < 2; ++h) std::memcpy(w + RowOfPlace(place + i) * ldw + k + 16 * h, values[h] + 16 * i, 16);
    }
  }
}

template <typename V>
void DecodeRows(const Lut4Panel& panel, int32_t begin, int32_t count, int8_t* w, int64_t ldw) {
  const bool wide = panel.tables == Lut4Tables::kWide;
  (wide ? DecodeSteps<V, true> : DecodeSteps<V, false>)(panel, begin, count, w, ldw);
}

}  // namespace

#undef TERSOR_UNROLL

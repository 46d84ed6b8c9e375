// Few rows against weights that are codes, over a vector type: 32 values of k of some weight rows are looked up in
// registers and multiplied with 32 bytes of x, which all of them share. docs/kernels.md draws the panel.
//
// For one row of x panels are read side by side, a slice of k of each in turn: memory is read as several streams, which
// hardware fetches ahead best, and the sums of one panel are scaled while the next one is looked up.
//
// Included only by kernels/<isa>/lut4.cc, which defines, in its own anonymous namespace, a type V:
//   W, kPlaces           int8 vector of 16 values for each of kPlaces weight rows
//   Load, Low, High      16 bytes of codes a place, and their halves;  Look(table, codes): a table for each place
//   M, LoadBits, Pick    16 bits a place; Pick(bits, set, clear): one of two W for each value
//   X                    16 values of x;  LoadX(p), LoadX(p, live): only the first `live` of the 16 are multiplied
//   kSigned              x - 128 is what LoadX gives
//   Sums, Zero, MulAdd   exact sums of products, several to a place
//   kAtOnce(m)           vectors that are summed side by side, a divisor of 16 / kPlaces
//   Reduce(sums, place, out)   kAtOnce vectors from this place on, one integer a place, to out[16], in order of places
//   Store(to, w), ToRows(places, rows)
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

constexpr int32_t kTableBytes = kPanelRowsLut4 * 16, kPlaneBytes = kPanelRowsLut4 * kStepLut4 / 8;
// One row of x reads panels side by side; more rows take longer than memory, and read one panel after another.
constexpr int32_t SideOf(int m) { return m == 1 ? 4 : 1; }
constexpr int32_t SliceOf(int m) { return m == 1 ? 128 : 65536; }  // values of k of a panel at a time
constexpr int32_t kAhead = 4096;  // bytes of codes that more rows fetch ahead: they leave the core no room to run ahead

// One value for each weight row of a panel, as many registers as that takes.
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));
typedef int16_t Shorts __attribute__((vector_size(32)));

constexpr int32_t RowOfPlace(int32_t place) { return 4 * (place % 4) + place / 4; }

// How codes are looked up: kHigh bits above the low four, or not at all.
constexpr int kWide = -1;
constexpr int32_t StepBytes(int high) { return high == kWide ? 2 * kTableBytes : kTableBytes + high * kPlaneBytes; }
constexpr int Books(int high) { return high == kWide ? 1 : 1 << high; }

struct Part {
  const uint8_t *table, *codes;
  const float* scale;
  const uint8_t* col_sum;
  int32_t begin, k;  // its values of k
};

[[gnu::always_inline]] inline Part PartOf(const Lut4Panel& panel, int32_t index) {
  const bool shared = panel.tables == Lut4Tables::kPerPanel, own = panel.tables == Lut4Tables::kPerPart;
  const int64_t tables = int64_t{kTableBytes} << panel.high;
  const int32_t in_unit = panel.in_unit, unit = in_unit == 2 ? index / 2 : index, at = in_unit == 2 ? index % 2 : 0;
  const uint8_t* data = panel.data + (shared ? tables : 0) + unit * panel.unit_bytes;
  const uint8_t* scale = data + (own ? in_unit * tables : 0);
  const int32_t begin = index * panel.depth, left = panel.k - begin;
  return {own ? data + at * tables : panel.data,
          scale + in_unit * 64 + 64 + at * (panel.depth / kStepLut4) * int64_t{panel.step_bytes},
          reinterpret_cast<const float*>(scale) + at * kPanelRowsLut4,
          scale + in_unit * 64 + at * 32,
          begin,
          left < panel.depth ? left : panel.depth};
}

[[gnu::always_inline]] inline void LoadColSums(const Lut4Panel& panel, const Part& part, Ints* sums) {
  if (panel.in_unit == 2) {
    Shorts narrow;
    std::memcpy(&narrow, part.col_sum, sizeof narrow);
    *sums = __builtin_convertvector(narrow, Ints);
  } else {
    std::memcpy(sums, part.col_sum, sizeof *sums);
  }
}

// The value of each code: the table that the high bits say, from the last of them down.
template <typename V, int kBits>
[[gnu::always_inline]] inline typename V::W Search(const typename V::W* tables, typename V::W codes,
                                                   const typename V::M* bits) {
  if constexpr (kBits == 0)
    return V::Look(*tables, codes);
  else
    return V::Pick(bits[kBits - 1], Search<V, kBits - 1>(tables + (1 << (kBits - 1)), codes, bits),
                   Search<V, kBits - 1>(tables, codes, bits));
}

// The values of a step from k 0 on, or from 16 on. tables: one for each value of the high bits.
template <typename V, int kHigh, bool kUpper>
[[gnu::always_inline]] inline typename V::W Decode(const uint8_t* step, int32_t place, const typename V::W* tables) {
  if constexpr (kHigh == kWide) {
    return V::Load(step + (kUpper ? kTableBytes : 0) + place * 16);
  } else {
    const typename V::W codes = V::Load(step + place * 16);
    typename V::M bits[kHigh + 1];
    TERSOR_UNROLL
    for (int h = 0; h < kHigh; ++h)
      bits[h] = V::LoadBits(step + kTableBytes + h * kPlaneBytes + (kUpper ? kPlaneBytes / 2 : 0) + place * 2);
    return Search<V, kHigh>(tables, kUpper ? V::High(codes) : V::Low(codes), bits);
  }
}

template <typename V, int kHigh>
[[gnu::always_inline]] inline void LoadTables(const uint8_t* from, int32_t place, typename V::W* tables) {
  for (int b = 0; b < (kHigh == kWide ? 0 : Books(kHigh)); ++b)
    tables[b] = V::Load(from + b * kTableBytes + place * 16);
}

// The sums of kAtOnce vectors of places over some steps.
template <typename V, int kM, int kHigh>
struct Block {
  static constexpr int kVectors = V::AtOnce(kM);
  typename V::Sums sums[kM][kVectors];
  typename V::W tables[kVectors][Books(kHigh)];

  // a: the values of x that meet these; of the last step of a part only `live` of the 16 count.
  template <bool kUpper, bool kLast>
  [[gnu::always_inline]] void Half(const uint8_t* step, int32_t place, const uint8_t* a, int64_t lda, int32_t live) {
    typename V::X x[kM];
    TERSOR_UNROLL
    for (int i = 0; i < kM; ++i) x[i] = kLast ? V::LoadX(a + i * lda, live) : V::LoadX(a + i * lda);
    TERSOR_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const typename V::W w = Decode<V, kHigh, kUpper>(step, place + v * V::kPlaces, tables[v]);
      TERSOR_UNROLL
      for (int i = 0; i < kM; ++i) sums[i][v] = V::MulAdd(sums[i][v], w, x[i]);
    }
  }

  // left: values of k.
  [[gnu::always_inline]] void Multiply(const Part& part, const uint8_t* step, int32_t left, const uint8_t* a,
                                       int64_t lda, int32_t place) {
    TERSOR_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      LoadTables<V, kHigh>(part.table, place + v * V::kPlaces, tables[v]);
      TERSOR_UNROLL
      for (int i = 0; i < kM; ++i) sums[i][v] = V::Zero();
    }
    for (; left >= kStepLut4; left -= kStepLut4, step += StepBytes(kHigh), a += kStepLut4) {
      if constexpr (kM > 1) {
        for (int32_t line = 0; line < StepBytes(kHigh); line += 64) __builtin_prefetch(step + kAhead + line);
      }
      Half<false, false>(step, place, a, lda, 16);
      Half<true, false>(step, place, a + 16, lda, 16);
    }
    if (left == 0) return;
    Half<false, true>(step, place, a, lda, left);
    Half<true, true>(step, place, a + 16, lda, left - 16);
  }
};

// The sums of a slice of one panel, in the order of rows.
template <typename V, int kM, int kHigh>
[[gnu::always_inline]] inline void Slice(const Part& part, int32_t begin, const uint8_t* a, int64_t lda, Ints* sums) {
  const uint8_t* step = part.codes + int64_t{begin / kStepLut4} * StepBytes(kHigh);
  const int32_t left = part.k - begin < SliceOf(kM) ? part.k - begin : SliceOf(kM);
  int32_t places[kM][kPanelRowsLut4];
  constexpr int32_t kAtOnce = V::AtOnce(kM) * V::kPlaces;
  for (int32_t place = 0; place < kPanelRowsLut4; place += kAtOnce) {
    Block<V, kM, kHigh> block;
    block.Multiply(part, step, left, a + begin, lda, place);
    TERSOR_UNROLL
    for (int i = 0; i < kM; ++i) V::template Reduce<V::AtOnce(kM)>(block.sums[i], places[i] + place);
  }
  TERSOR_UNROLL
  for (int i = 0; i < kM; ++i) {
    int32_t rows[kPanelRowsLut4];
    V::ToRows(places[i], rows);
    std::memcpy(&sums[i], rows, sizeof sums[i]);
  }
}

// y: of one panel. index: of its part.
template <typename V, int kM>
[[gnu::always_inline]] inline void Finish(const Lut4RowsArgs& g, const Lut4Panel& panel, const Part& part,
                                          int32_t index, int32_t column, const Ints* sums, Floats* y) {
  Floats scale;
  Ints col_sum;
  std::memcpy(&scale, part.scale, sizeof scale);
  LoadColSums(panel, part, &col_sum);
  TERSOR_UNROLL
  for (int i = 0; i < kM; ++i) {
    const Ints t = sums[i] - (V::kSigned ? g.row_zero[i] - 128 : g.row_zero[i]) * col_sum;
    const Floats term = __builtin_convertvector(t, Floats) * (g.row_scale[i] * scale);
    if (index > 0) {
      y[i] = (term + 0.0f) + y[i];
      continue;
    }
    Floats first;
    std::memcpy(&first, g.bias + column, sizeof first);
    y[i] = term + first;
    if (g.residual == nullptr) continue;
    std::memcpy(&first, g.residual + i * g.ldy + column, sizeof first);
    y[i] = y[i] + first;
  }
}

// `count` panels, `apart` from one to the next.
template <typename V, int kM, int kHigh>
void SideBySide(const Lut4RowsArgs& g, int32_t first, int32_t apart, int32_t count) {
  Floats y[SideOf(kM)][kM];
  Ints sums[SideOf(kM)][kM];
  Lut4Panel panel = g.panel;
  const uint8_t* data = g.panel.data + first * g.panel_bytes;
  for (int32_t p = 0; p < panel.parts; ++p) {
    const int32_t left = panel.k - p * panel.depth, k = left < panel.depth ? left : panel.depth;
    for (int32_t begin = 0; begin < k; begin += SliceOf(kM)) {
      for (int32_t s = 0; s < count; ++s) {
        panel.data = data + int64_t{s} * apart * g.panel_bytes;
        const Part part = PartOf(panel, p);
        Ints slice[kM];
        Slice<V, kM, kHigh>(part, begin, g.a + part.begin, g.lda, slice);
        TERSOR_UNROLL
        for (int i = 0; i < kM; ++i) {
          if (begin > 0) slice[i] += sums[s][i];
          if (k - begin > SliceOf(kM)) sums[s][i] = slice[i];
        }
        if (k - begin <= SliceOf(kM))
          Finish<V, kM>(g, panel, part, p, (first + s * apart) * kPanelRowsLut4, slice, y[s]);
      }
    }
  }
  for (int32_t s = 0; s < count; ++s)
    for (int i = 0; i < kM; ++i)
      std::memcpy(g.y + i * g.ldy + (first + s * apart) * kPanelRowsLut4, &y[s][i], sizeof y[s][i]);
}

template <typename V, int kM, int kHigh>
void Panels(const Lut4RowsArgs& g) {
  const int32_t apart = (g.panels + SideOf(kM) - 1) / SideOf(kM);
  for (int32_t first = 0; first < apart; ++first)
    SideBySide<V, kM, kHigh>(g, first, apart, (g.panels - first + apart - 1) / apart);
}

constexpr int32_t kMaxM = 4;
using RunRows = void (*)(const Lut4RowsArgs&);

template <typename V, int kHigh>
RunRows RowsOf(int32_t m) {
  static constexpr RunRows kByRows[kMaxM] = {Panels<V, 1, kHigh>, Panels<V, 2, kHigh>, Panels<V, 3, kHigh>,
                                             Panels<V, 4, kHigh>};
  return kByRows[m - 1];
}

// Calls F::Run<kHigh> for the form of a panel.
template <typename F, typename... Args>
void ByForm(const Lut4Panel& panel, const Args&... args) {
  if (panel.tables == Lut4Tables::kWide) return F::template Run<kWide>(args...);
  if (panel.high == 0) return F::template Run<0>(args...);
  static_assert(tersor::kMaxHighLut4 == 1, "each number of high bits has its case");
  F::template Run<1>(args...);
}

template <typename V>
struct RowsForm {
  template <int kHigh>
  static void Run(const Lut4RowsArgs& g) {
    RowsOf<V, kHigh>(g.m)(g);
  }
};

template <typename V>
void Rows(const Lut4RowsArgs& g) {
  ByForm<RowsForm<V>>(g.panel, g);
}

template <typename V>
struct DecodeForm {
  template <int kHigh>
  static void Run(const Lut4Panel& panel, int32_t begin, int32_t count, int8_t* w, int64_t ldw) {
    for (int32_t k = 0; k < count; k += kStepLut4) {
      const Part part = PartOf(panel, (begin + k) / panel.depth);
      const uint8_t* step = part.codes + int64_t{begin + k - part.begin} / kStepLut4 * StepBytes(kHigh);
      TERSOR_UNROLL
      for (int32_t place = 0; place < kPanelRowsLut4; place += V::kPlaces) {
        typename V::W tables[Books(kHigh)];
        LoadTables<V, kHigh>(part.table, place, tables);
        int8_t values[2][16 * V::kPlaces];
        V::Store(values[0], Decode<V, kHigh, false>(step, place, tables));
        V::Store(values[1], Decode<V, kHigh, true>(step, place, tables));
        for (int32_t i = 0; i < V::kPlaces; ++i)
          for (int h = 0; h < 2; ++h) std::memcpy(w + RowOfPlace(place + i) * ldw + k + 16 * h, values[h] + 16 * i, 16);
      }
    }
  }
};

template <typename V>
void DecodeRows(const Lut4Panel& panel, int32_t begin, int32_t count, int8_t* w, int64_t ldw) {
  ByForm<DecodeForm<V>>(panel, panel, begin, count, w, ldw);
}

}  // namespace

#undef TERSOR_UNROLL

// Attention of one head over a vector type: two products of int16 pairs with one tile, and between them a softmax in
// base 2. Every instruction set gives the same bits: the products are exact integers, sums of floats are kept in 16
// partial sums that are added in one order, and each float step is rounded once.
//
// Exact: |q| and |k| are at most 4095 for a depth up to 128 (2047 to 512), weights at most 8191, values 2047, keys of a
// block 128: no sum leaves int32.
//
// Included only by kernels/<isa>/attention.cc, which defines, in its own anonymous namespace, a type V:
//   everything of a vector of floats (lanes.h of the instruction set): F, kLanes, a divisor of 16, and its arithmetic
//   I, kRows, kGroups      vectors of kLanes int32; the tile is kRows rows by kGroups * 16 columns
//   Zero, Pair(p)          two int16, in every lane;  Pairs(p): kLanes pairs
//   MulAdd(acc, a, w)      acc + the two products of each lane, exactly
//   ToFloat                of I
//   Pin(I& v)              tells the compiler that v changes here: behind a loop, it keeps its sums in registers alone
//   Shift(v, n)            v * 2^n, v in [0.5, 2) and n an integer in [-125, 0]
//   Sum16, Max16(F* v)     of 16 floats: lane i and i + 8, then i + 4, i + 2, i + 1
//   Round16(v, p)          16 floats to int16, to nearest even; NaN gives any
//   Interleave(a, b, p)    a[0] b[0] a[1] b[1] .. of 16 values each
//   LoadBits, StoreBits    2 * kLanes int16 as they are;  Transpose(F* v): kLanes vectors
#pragma once
#include <cstring>
#include <type_traits>

#include "kernels/kernel_api.h"

#define TERSOR_UNROLL _Pragma("GCC unroll 16")

namespace {

template <typename V>
struct Attention {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int32_t kLanes = static_cast<int32_t>(V::kLanes), kParts = 16 / kLanes, kRows = V::kRows;
  static constexpr int32_t kKeys = tersor::kAttentionKeys, kGroup = 32;  // kGroup: values of 16 pairs

  // 2^x for x <= 0, at least 2^-125; within 1.78 units in the last place.
  [[gnu::always_inline]] static F Exp2(F x) {
    const F bounded = V::Max(V::Set(-125.0f), x), shift = V::Set(0x1.8p23f);
    const F n = V::Sub(V::Add(bounded, shift), shift), f = V::Sub(bounded, n);
    F p = V::Fma(f, V::Set(0x1.5ab438p-10f), V::Set(0x1.3ceca0p-7f));
    p = V::Fma(f, p, V::Set(0x1.c6baa6p-5f));
    p = V::Fma(f, p, V::Set(0x1.ebf9b4p-3f));
    p = V::Fma(f, p, V::Set(0x1.62e424p-1f));
    return V::Shift(V::Fma(f, p, V::Set(1.0f)), n);
  }

  static void Exp2Row(int64_t n, float* x) {
    for (int64_t i = 0; i < n; i += kLanes) {
      float part[kLanes] = {};
      const size_t bytes = static_cast<size_t>(n - i < kLanes ? n - i : kLanes) * sizeof(float);
      std::memcpy(part, x + i, bytes);
      V::Store(part, Exp2(V::Load(part)));
      std::memcpy(x + i, part, bytes);
    }
  }

  static float QuantizeRow(int64_t n, const float* x, int32_t limit, int16_t* q) {
    F largest[kParts];
    for (int v = 0; v < kParts; ++v) largest[v] = V::Set(0.0f);
    float rest[16] = {};
    const int64_t whole = n / 16 * 16;
    std::memcpy(rest, x + whole, static_cast<size_t>(n - whole) * sizeof(float));
    // Max keeps its second operand when either is NaN: once NaN, a lane stays NaN.
    const auto add = [&](const float* from) {
      TERSOR_UNROLL
      for (int v = 0; v < kParts; ++v) largest[v] = V::KeepNan(V::Abs(V::Load(from + v * kLanes)), largest[v]);
    };
    for (int64_t i = 0; i < whole; i += 16) add(x + i);
    add(rest);
    float parts[16], amax;
    int32_t bits[16], most = 0;  // magnitudes are ordered like their bits, NaN above all
    for (int v = 0; v < kParts; ++v) V::Store(parts + v * kLanes, largest[v]);
    std::memcpy(bits, parts, sizeof bits);
    for (const int32_t part : bits) most = part < most ? most : part;
    std::memcpy(&amax, &most, sizeof amax);
    if (!(amax <= 3.402823466e38f)) {
      std::memset(q, 0, static_cast<size_t>(n) * sizeof *q);
      return __builtin_nanf("");
    }
    const float fraction = amax / static_cast<float>(limit), smallest = 0x1p-126f;
    const float scale = fraction > smallest ? fraction : smallest;
    const F inverse = V::Set(1.0f / scale);
    const auto round = [&](const float* from, int16_t* to) {
      F scaled[kParts];
      TERSOR_UNROLL
      for (int v = 0; v < kParts; ++v) scaled[v] = V::Mul(V::Load(from + v * kLanes), inverse);
      V::Round16(scaled, to);
    };
    for (int64_t i = 0; i < whole; i += 16) round(x + i, q + i);
    int16_t last[16];
    round(rest, last);
    std::memcpy(q + whole, last, static_cast<size_t>(n - whole) * sizeof *q);
    return scale;
  }

  // A panel is cut into blocks of kGroups groups of 16 columns, and of 2 or 1 where fewer are left; a block is
  // [pairs][its groups][16][2].
  struct Place {
    int32_t block, width;  // the first group of the block, and how many it has
  };
  static Place BlockOf(int32_t groups, int32_t group) {
    int32_t block = 0, width = V::kGroups;
    for (;; block += width) {
      while (groups - block < width) width /= 2;
      if (group < block + width) return {block, width};
    }
  }
  // Where the 16 pairs of a group begin, for pair 0, and how far it is to the next pair.
  struct Column {
    int16_t* begin;
    int32_t step;
  };
  static Column ColumnsOf(int16_t* panel, int32_t pairs, int32_t groups, int32_t group) {
    const Place place = BlockOf(groups, group);
    return {panel + place.block * int64_t{pairs} * kGroup + (group - place.block) * kGroup, place.width * kGroup};
  }

  static void Pack(int32_t keys, int32_t depth, const int16_t* key, const int16_t* value, int64_t ld,
                   int16_t* key_panel, int16_t* value_panel) {
    PackKeys(keys, depth, key, ld, key_panel);
    const int32_t pairs = (keys + 1) / 2;
    const int16_t zeros[16] = {};
    for (int32_t c = 0; c < depth; c += 16) {
      const Column to = ColumnsOf(value_panel, pairs, (depth + 15) / 16, c / 16);
      const auto row = [&](int32_t j) { return j < keys ? value + j * ld + c : zeros; };
      for (int32_t p = 0; p < pairs; ++p) V::Interleave(row(2 * p), row(2 * p + 1), to.begin + p * to.step);
    }
  }

  // kLanes keys by kLanes pairs at a time.
  static void PackKeys(int32_t keys, int32_t depth, const int16_t* key, int64_t ld, int16_t* panel) {
    const int32_t pairs = (depth + 1) / 2;
    const int16_t zeros[2 * kLanes] = {};
    for (int32_t j = 0; j < (keys + 15) / 16 * 16; j += kLanes) {
      const Column column = ColumnsOf(panel, pairs, (keys + 15) / 16, j / 16);
      int16_t* to = column.begin + j % 16 * 2;
      for (int32_t p = 0; p < pairs; p += kLanes) {
        F v[kLanes];
        TERSOR_UNROLL
        for (int i = 0; i < kLanes; ++i) v[i] = V::LoadBits(j + i < keys ? key + (j + i) * ld + 2 * p : zeros);
        V::Transpose(v);
        TERSOR_UNROLL
        for (int i = 0; i < kLanes; ++i)
          if (p + i < pairs) V::StoreBits(to + (p + i) * column.step, v[i]);
      }
      if (depth % 2 != 0)
        for (int32_t i = 0; i < kLanes; ++i) to[(pairs - 1) * column.step + 2 * i + 1] = 0;
    }
  }

  // take(i, 16 g + v * kLanes, sums): the exact products of row i and the columns of kG groups.
  template <int kR, int kG, typename Take>
  [[gnu::always_inline]] static void Tile(const int16_t* a, int64_t lda, const int16_t* panel, int32_t pairs,
                                          int32_t column, Take take) {
    constexpr int kVectors = kG * kParts;
    I acc[kR][kVectors];
    TERSOR_UNROLL
    for (int i = 0; i < kR; ++i) {
      TERSOR_UNROLL
      for (int v = 0; v < kVectors; ++v) acc[i][v] = V::Zero();
    }
    for (int32_t p = 0; p < pairs; ++p) {
      I w[kVectors];
      TERSOR_UNROLL
      for (int v = 0; v < kVectors; ++v) w[v] = V::Pairs(panel + p * kG * kGroup + v * 2 * kLanes);
      TERSOR_UNROLL
      for (int i = 0; i < kR; ++i) {
        const I x = V::Pair(a + i * lda + 2 * p);
        TERSOR_UNROLL
        for (int v = 0; v < kVectors; ++v) acc[i][v] = V::MulAdd(acc[i][v], x, w[v]);
      }
    }
    TERSOR_UNROLL
    for (int i = 0; i < kR; ++i) {
      TERSOR_UNROLL
      for (int v = 0; v < kVectors; ++v) V::Pin(acc[i][v]);
    }
    TERSOR_UNROLL
    for (int i = 0; i < kR; ++i) {
      TERSOR_UNROLL
      for (int v = 0; v < kVectors; ++v) take(i, column + v * kLanes, acc[i][v]);
    }
  }

  template <int kR, typename Take>
  [[gnu::always_inline]] static void Multiply(const int16_t* a, int64_t lda, const int16_t* panel, int32_t pairs,
                                              int32_t groups, Take take) {
    const auto tiles = [&](auto width, int32_t g) {
      constexpr int kG = decltype(width)::value;
      for (; groups - g >= kG; g += kG) Tile<kR, kG>(a, lda, panel + g * int64_t{pairs} * kGroup, pairs, 16 * g, take);
      return g;
    };
    int32_t g = 0;
    if constexpr (V::kGroups >= 4) g = tiles(std::integral_constant<int, 4>(), g);
    if constexpr (V::kGroups >= 2) g = tiles(std::integral_constant<int, 2>(), g);
    tiles(std::integral_constant<int, 1>(), g);
  }

  // Adds the bias to the scores of a row, in units of log2, and -infinity behind its end; returns the largest.
  [[gnu::always_inline]] static float FinishScores(const tersor::AttentionArgs& g, int32_t row, float* s) {
    F largest[kParts];
    for (int v = 0; v < kParts; ++v) largest[v] = V::Set(-__builtin_inff());
    for (int32_t j = 0; j < g.keys; j += 16) {
      if (g.bias != nullptr) AddBias(g.bias + row * g.ld_bias + j, g.keys - j, s + j);
      for (int32_t k = g.keys; k < j + 16; ++k) s[k] = -__builtin_inff();
      TERSOR_UNROLL
      for (int v = 0; v < kParts; ++v) largest[v] = V::Max(largest[v], V::Load(s + j + v * kLanes));
    }
    return V::Max16(largest);
  }

  static void AddBias(const float* bias, int32_t left, float* s) {
    float part[16] = {};
    std::memcpy(part, bias, static_cast<size_t>(left < 16 ? left : 16) * sizeof(float));
    for (int v = 0; v < kParts; ++v) {
      const int at = v * kLanes;
      V::Store(s + at, V::Add(V::Load(s + at), V::Load(part + at)));
    }
  }

  // weights = round(2^(s - max) * share), zero padded to 16; returns the sum of the powers.
  [[gnu::always_inline]] static float Weights(const tersor::AttentionArgs& g, float max, const float* s,
                                              int16_t* weights) {
    const F shift = V::Set(max == -__builtin_inff() ? 0.0f : max);
    F sums[kParts];
    for (int v = 0; v < kParts; ++v) sums[v] = V::Set(0.0f);
    for (int32_t j = 0; j < g.keys; j += 16) {
      F w[kParts];
      TERSOR_UNROLL
      for (int v = 0; v < kParts; ++v) {
        const F e = Exp2(V::Sub(V::Load(s + j + v * kLanes), shift));
        sums[v] = V::Add(sums[v], e);
        w[v] = V::Mul(e, V::Load(g.value_share + j + v * kLanes));
      }
      V::Round16(w, weights + j);
    }
    return V::Sum16(sums);
  }

  // What the sums so far are multiplied with when the largest score rises from `before` to `after`.
  static float Correction(float before, float after) {
    float one[kLanes];
    V::Store(one, Exp2(V::Sub(V::Set(before), V::Set(after))));
    return one[0];
  }

  struct RowState {
    float correction, inverse;
  };

  [[gnu::always_inline]] static RowState Softmax(const tersor::AttentionArgs& g, int32_t row, float max,
                                                 const float* scores, int16_t* weights) {
    RowState state = {0.0f, 1.0f};
    if (!g.first) {
      const float before = g.max[row];
      max = before > max ? before : max;
      state.correction = Correction(before, max);
    }
    float sum = Weights(g, max, scores, weights);
    if (!g.first) sum = g.sum[row] * state.correction + sum;
    g.max[row] = max;
    g.sum[row] = sum;
    if (g.last) state.inverse = 1.0f / sum;
    return state;
  }

  template <int kR>
  static void AttendRows(const tersor::AttentionArgs& g, int32_t row) {
    alignas(64) float scores[kR][kKeys];
    alignas(64) int16_t weights[kR][kKeys];
    Multiply<kR>(g.q + row * g.ldq, g.ldq, g.key_panel, (g.depth + 1) / 2, (g.keys + 15) / 16,
                 [&](int i, int32_t at, I sums) {
                   const F scale = V::Mul(V::Load(g.key_scale + at), V::Set(g.q_scale[row + i]));
                   V::Store(scores[i] + at, V::Mul(V::ToFloat(sums), scale));
                 });
    RowState states[kR];
    float max[kR];
    for (int i = 0; i < kR; ++i) max[i] = FinishScores(g, row + i, scores[i]);
    for (int i = 0; i < kR; ++i) states[i] = Softmax(g, row + i, max[i], scores[i], weights[i]);
    const F unit = V::Set(g.value_unit);
    Multiply<kR>(weights[0], kKeys, g.value_panel, (g.keys + 1) / 2, (g.depth + 15) / 16,
                 [&](int i, int32_t at, I sums) {
                   float* out = g.out + (row + i) * g.ld_out + at;
                   F y = V::Mul(V::ToFloat(sums), unit);
                   if (!g.first) y = V::Fma(V::Load(out), V::Set(states[i].correction), y);
                   if (g.last) y = V::Mul(y, V::Set(states[i].inverse));
                   V::Store(out, y);
                 });
  }

  template <int kR = kRows>
  static void AttendSome(const tersor::AttentionArgs& g, int32_t row, int32_t rows) {
    if constexpr (kR > 1)
      if (rows < kR) return AttendSome<kR - 1>(g, row, rows);
    AttendRows<kR>(g, row);
  }

  // Rows spread evenly over the tiles.
  static void Attend(const tersor::AttentionArgs& g) {
    const int32_t tiles = (g.rows + kRows - 1) / kRows;
    for (int32_t tile = 0, row = 0; tile < tiles; ++tile) {
      const int32_t rows = (g.rows - row + tiles - tile - 1) / (tiles - tile);
      AttendSome(g, row, rows);
      row += rows;
    }
  }

  static constexpr tersor::AttentionKernel Kernel(const char* id) { return {id, QuantizeRow, Pack, Attend, Exp2Row}; }
};

}  // namespace

#undef TERSOR_UNROLL

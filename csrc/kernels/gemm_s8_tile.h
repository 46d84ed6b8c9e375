// The int8 tile that keeps its sums in registers, over a vector type: for every kr values of k, load nr columns of
// weights once, broadcast kr values of each row of A against them. docs/kernels.md draws the panel.
//
// Included only by kernels/<isa>/gemm_s8.cc, which defines, in its own anonymous namespace, a type V:
//   I, F                   vectors of kLanes int32 and float lanes
//   kMr, kVectors, kKr     the tile is kMr rows by kVectors * kLanes columns, kKr values of k a step
//   Weights                kLanes columns of a step, from the panel's kLanes * kKr bytes
//   kWidens                whether A is widened to int16 first; a step takes 4 bytes of each row either way
//   Widen(k, from, to)     k values, uint8 to int16; touches nothing beyond them in `from`, and at most 256 in `to`
//   MulAdd(acc, a, w)      acc + the kKr products of each lane, exactly
//   Broadcast, Set, Load, Store and the arithmetic of the epilogue
#pragma once
#include <cstring>

#include "kernels/kernel_api.h"

#define TERSOR_UNROLL _Pragma("GCC unroll 16")

namespace {

// [ceil(k / kKr)][kNr][kKr] int8, zero padded.
template <int32_t kNr, int32_t kKr>
struct Panel {
  static constexpr int32_t kStep = kNr * kKr;  // bytes

  static int32_t Steps(int32_t k) { return (k + kKr - 1) / kKr; }
  static size_t Bytes(int32_t k) { return static_cast<size_t>(Steps(k)) * kStep; }

  static void Pack(int32_t n, int32_t k, const int8_t* w, int64_t ldw, void* panel) {
    char* out = static_cast<char*>(panel);
    const size_t rest = static_cast<size_t>(k % kKr);
    if (n < kNr || rest != 0) std::memset(out, 0, Bytes(k));
    for (int32_t j = 0; j < n; ++j) {
      const int8_t* row = w + j * ldw;
      char* to = out + j * kKr;
      for (int32_t p = 0; p < k / kKr; ++p, row += kKr, to += kStep) std::memcpy(to, row, kKr);
      std::memcpy(to, row, rest);
    }
  }

  static void Unpack(int32_t n, int32_t k, const void* panel, int8_t* w, int64_t ldw) {
    const size_t rest = static_cast<size_t>(k % kKr);
    for (int32_t j = 0; j < n; ++j) {
      int8_t* row = w + j * ldw;
      const char* from = static_cast<const char*>(panel) + j * kKr;
      for (int32_t p = 0; p < k / kKr; ++p, row += kKr, from += kStep) std::memcpy(row, from, kKr);
      std::memcpy(row, from, rest);
    }
  }
};

template <typename V, int kRows>
struct Tile {
  static constexpr int32_t kNr = V::kVectors * V::kLanes;
  using Layout = Panel<kNr, V::kKr>;
  static constexpr int32_t kWidened = 256;  // values of k per row that are widened at a time, on the stack

  typename V::I acc[kRows][V::kVectors];

  // a: 4 bytes of each row, the rows `stride` bytes apart; b: a step of the panel.
  void Step(const char* a, int64_t stride, const char* b) {
    typename V::I w[V::kVectors];
    TERSOR_UNROLL
    for (int v = 0; v < V::kVectors; ++v) w[v] = V::Weights(b + v * V::kLanes * V::kKr);
    TERSOR_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const typename V::I x = V::Broadcast(a + i * stride);
      TERSOR_UNROLL
      for (int v = 0; v < V::kVectors; ++v) acc[i][v] = V::MulAdd(acc[i][v], x, w[v]);
    }
  }

  void Multiply(const tersor::GemmS8Args& g, const char* b) {
    TERSOR_UNROLL
    for (int i = 0; i < kRows; ++i) {
      TERSOR_UNROLL
      for (int v = 0; v < V::kVectors; ++v) acc[i][v] = V::Set(0);
    }
    if constexpr (V::kWidens)
      MultiplyWidened(g, b);
    else
      for (int32_t p = 0; p < Layout::Steps(g.k); ++p)
        Step(reinterpret_cast<const char*>(g.a) + p * V::kKr, g.lda, b + p * Layout::kStep);
  }

  void MultiplyWidened(const tersor::GemmS8Args& g, const char* b) {
    alignas(64) int16_t wide[kRows][kWidened];
    constexpr int32_t kSteps = kWidened / V::kKr;
    const int32_t steps = Layout::Steps(g.k);
    for (int32_t begin = 0; begin < steps; begin += kSteps) {
      const int32_t block = steps - begin < kSteps ? steps - begin : kSteps;
      for (int i = 0; i < kRows; ++i) V::Widen(block * V::kKr, g.a + i * g.lda + begin * V::kKr, wide[i]);
      const char* a = reinterpret_cast<const char*>(wide[0]);
      for (int32_t p = 0; p < block; ++p, b += Layout::kStep) Step(a + 4 * p, sizeof wide[0], b);
    }
  }

  void Store(const tersor::GemmS8Args& g, int32_t column) const {
    TERSOR_UNROLL
    for (int i = 0; i < kRows; ++i) {
      TERSOR_UNROLL
      for (int v = 0; v < V::kVectors; ++v) V::Store(g.acc + i * g.ld_acc + column + v * V::kLanes, acc[i][v]);
    }
  }

  template <bool kResidual>
  void Finish(const tersor::GemmS8Args& g, int32_t column) const {
    TERSOR_UNROLL
    for (int v = 0; v < V::kVectors; ++v) {
      const int32_t col = column + v * V::kLanes;
      const typename V::I col_sum = V::Load(g.col_sum + col);
      const typename V::F col_scale = V::Load(g.col_scale + col), bias = V::Load(g.bias + col);
      TERSOR_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const typename V::F t = V::ToFloat(V::Sub(acc[i][v], V::Mul(V::Set(g.row_zero[i]), col_sum)));
        typename V::F y = V::Add(V::Mul(t, V::Mul(V::Set(g.row_scale[i]), col_scale)), bias);
        if (kResidual) y = V::Add(y, V::Load(g.residual + i * g.ldr + col));
        V::Store(g.c + i * g.ldc + col, y);
      }
    }
  }

  void Write(const tersor::GemmS8Args& g, int32_t column) const {
    if (g.acc != nullptr)
      Store(g, column);
    else if (g.residual != nullptr)
      Finish<true>(g, column);
    else
      Finish<false>(g, column);
  }

  // The last panel, of which only `live` columns exist: written in full beside the caller's memory, then copied.
  void WritePart(tersor::GemmS8Args g, int32_t column, int32_t live) const {
    const size_t bytes = static_cast<size_t>(live) * 4;
    int32_t sums[kRows][kNr];
    float values[kRows][kNr];
    if (g.residual != nullptr)
      for (int i = 0; i < kRows; ++i) std::memcpy(values[i], g.residual + i * g.ldr + column, bytes);
    tersor::GemmS8Args part = g;
    part.acc = g.acc != nullptr ? sums[0] : nullptr;
    part.c = values[0];
    part.ld_acc = part.ldc = part.ldr = kNr;
    if (g.residual != nullptr) part.residual = values[0];
    part.col_sum += column;
    part.col_scale += column;
    part.bias += column;
    Write(part, 0);
    for (int i = 0; i < kRows; ++i)
      if (g.acc != nullptr)
        std::memcpy(g.acc + i * g.ld_acc + column, sums[i], bytes);
      else
        std::memcpy(g.c + i * g.ldc + column, values[i], bytes);
  }
};

template <typename V, int kRows>
void RunPanels(const tersor::GemmS8Args& g) {
  using T = Tile<V, kRows>;
  const char* b = static_cast<const char*>(g.panel);
  for (int32_t column = 0; column < g.n; column += T::kNr, b += T::Layout::Bytes(g.k)) {
    T tile;
    tile.Multiply(g, b);
    if (g.n - column >= T::kNr)
      tile.Write(g, column);
    else
      tile.WritePart(g, column, g.n - column);
  }
}

// Any m up to kMr and any n.
template <typename V, int kRows = V::kMr>
void RunRows(const tersor::GemmS8Args& g) {
  if constexpr (kRows > 0) {
    if (g.m == kRows) return RunPanels<V, kRows>(g);
    RunRows<V, kRows - 1>(g);
  }
}

// The tile walks any number of panels, so it serves few rows as well.
template <typename V>
constexpr tersor::GemmS8Kernel Kernel(const char* id) {
  using Layout = typename Tile<V, 1>::Layout;
  return {id,           V::kMr,         Tile<V, 1>::kNr, V::kKr, Layout::Bytes,
          Layout::Pack, Layout::Unpack, RunRows<V>,      V::kMr, RunRows<V>};
}

}  // namespace

#undef TERSOR_UNROLL

// The float tile that keeps its sums in registers, over a vector type: for every value of k, load nr weights once and
// broadcast one value of each row of A against them. Panel: [k][nr] float32. Each output is one chain of fused
// multiply-adds in the order of k, so that the bits are the same on every instruction set.
//
// Included only by kernels/<isa>/gemm_f32.cc, which defines, in its own anonymous namespace, a type V:
//   F                      a vector of kLanes floats
//   kMr, kVectors          the tile is kMr rows by kVectors * kLanes columns
//   Load, Store, Broadcast (from memory), Add and Fma(a, b, c) = a * b + c, each rounded once
#pragma once
#include <cstring>

#include "kernels/kernel_api.h"

#define TERSOR_UNROLL _Pragma("GCC unroll 16")

namespace {

// kPanels neighbouring panels at once: one row of A has too few sums of its own to hide the latency of an addition.
template <typename V, int kRows, int kPanels>
struct FloatTile {
  static constexpr int32_t kNr = V::kVectors * V::kLanes;
  static constexpr int64_t kAhead = 16 * kNr;  // of the panel that is being read: it may come from memory

  typename V::F acc[kPanels][kRows][V::kVectors];

  // begin [rows][kPanels * kNr], row stride ld; 0 for a bias.
  [[gnu::always_inline]] void Start(const float* begin, int64_t ld) {
    TERSOR_UNROLL
    for (int q = 0; q < kPanels; ++q) {
      TERSOR_UNROLL
      for (int i = 0; i < kRows; ++i) {
        TERSOR_UNROLL
        for (int v = 0; v < V::kVectors; ++v) acc[q][i][v] = V::Load(begin + i * ld + q * kNr + v * V::kLanes);
      }
    }
  }

  [[gnu::always_inline]] void Multiply(const tersor::GemmF32Args& g, const float* panel) {
    const float* a = g.a;
    const float* b = panel;
    for (int32_t p = 0; p < g.k; ++p, ++a, b += kNr) {
      typename V::F w[kPanels][V::kVectors];
      TERSOR_UNROLL
      for (int q = 0; q < kPanels; ++q) {
        TERSOR_UNROLL
        for (int v = 0; v < V::kVectors; ++v) {
          w[q][v] = V::Load(b + q * g.panel_stride + v * V::kLanes);
          if (v * V::kLanes % 16 == 0) __builtin_prefetch(b + q * g.panel_stride + v * V::kLanes + kAhead);
        }
      }
      TERSOR_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const typename V::F x = V::Broadcast(a + i * g.lda);
        TERSOR_UNROLL
        for (int q = 0; q < kPanels; ++q) {
          TERSOR_UNROLL
          for (int v = 0; v < V::kVectors; ++v) acc[q][i][v] = V::Fma(x, w[q][v], acc[q][i][v]);
        }
      }
    }
  }

  [[gnu::always_inline]] void Write(float* c, int64_t ldc, const float* residual, int64_t ldr) const {
    TERSOR_UNROLL
    for (int q = 0; q < kPanels; ++q) {
      TERSOR_UNROLL
      for (int i = 0; i < kRows; ++i) {
        TERSOR_UNROLL
        for (int v = 0; v < V::kVectors; ++v) {
          const int32_t column = q * kNr + v * V::kLanes;
          typename V::F y = acc[q][i][v];
          if (residual != nullptr) y = V::Add(y, V::Load(residual + i * ldr + column));
          V::Store(c + i * ldc + column, y);
        }
      }
    }
  }
};

// The last panel, of which only `live` columns exist: computed beside the caller's memory.
template <typename V, int kRows>
void PartOfPanel(const tersor::GemmF32Args& g, const float* panel, int32_t column) {
  using T = FloatTile<V, kRows, 1>;
  const size_t bytes = static_cast<size_t>(g.n - column) * sizeof(float);
  float values[kRows][T::kNr] = {}, added[kRows][T::kNr] = {};
  for (int i = 0; i < kRows; ++i) {
    if (g.bias == nullptr) std::memcpy(values[i], g.c + i * g.ldc + column, bytes);
    if (g.residual != nullptr) std::memcpy(added[i], g.residual + i * g.ldr + column, bytes);
  }
  T tile;
  if (g.bias == nullptr)
    tile.Start(values[0], T::kNr);
  else
    tile.Start(g.bias + column, 0);
  tile.Multiply(g, panel);
  tile.Write(values[0], T::kNr, g.residual == nullptr ? nullptr : added[0], T::kNr);
  for (int i = 0; i < kRows; ++i) std::memcpy(g.c + i * g.ldc + column, values[i], bytes);
}

template <typename V, int kRows, int kPanels>
[[gnu::always_inline]] inline void WholePanels(const tersor::GemmF32Args& g, const float* panel, int32_t column) {
  FloatTile<V, kRows, kPanels> tile;
  if (g.bias == nullptr)
    tile.Start(g.c + column, g.ldc);
  else
    tile.Start(g.bias + column, 0);
  tile.Multiply(g, panel);
  tile.Write(g.c + column, g.ldc, g.residual == nullptr ? nullptr : g.residual + column, g.ldr);
}

template <typename V, int kRows>
void FloatPanels(const tersor::GemmF32Args& g) {
  constexpr int32_t kNr = FloatTile<V, kRows, 1>::kNr;
  constexpr int kPanels = kRows <= 2 ? 2 : 1;
  const float* panel = g.panel;
  int32_t column = 0;
  for (; column + kPanels * kNr <= g.n; column += kPanels * kNr, panel += kPanels * g.panel_stride)
    WholePanels<V, kRows, kPanels>(g, panel, column);
  for (; column + kNr <= g.n; column += kNr, panel += g.panel_stride) WholePanels<V, kRows, 1>(g, panel, column);
  if (column < g.n) PartOfPanel<V, kRows>(g, panel, column);
}

template <typename V, int kRows = V::kMr>
void RunFloatTile(const tersor::GemmF32Args& g) {
  if constexpr (kRows > 0) {
    if (g.m == kRows) return FloatPanels<V, kRows>(g);
    RunFloatTile<V, kRows - 1>(g);
  }
}

template <typename V>
constexpr tersor::GemmF32Kernel FloatKernel(const char* id) {
  return {id, V::kMr, FloatTile<V, 1, 1>::kNr, RunFloatTile<V>};
}

}  // namespace

#undef TERSOR_UNROLL

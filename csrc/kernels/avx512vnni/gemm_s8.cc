// 14x32 tile. Panel: [ceil(k / 4)][nr][4] int8, so that one zmm holds 4 values of k for 16 columns.
// A stays row-major: 4 bytes of a row are broadcast and serve the whole width of the tile.
// Exact: vpdpbusd (unsigned x signed) sums into int32 and never saturates.
#include <immintrin.h>

#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::avx512vnni {
namespace {

constexpr int32_t kMr = 14, kNr = 32, kKr = 4;
constexpr int32_t kVectors = kNr / 16;  // zmm registers across the tile
constexpr int32_t kStep = kNr * kKr;    // bytes of a panel per 4 values of k
constexpr int32_t kRowLimit = 8;
static_assert(kMr * kVectors + kVectors + 2 <= 32, "accumulators, weights and broadcasts fit the registers");

int32_t Quads(int32_t k) { return (k + kKr - 1) / kKr; }

size_t PanelBytes(int32_t k) { return static_cast<size_t>(Quads(k)) * kStep; }

void PackPanel(int32_t n, int32_t k, const int8_t* w, int64_t ldw, void* panel) {
  char* out = static_cast<char*>(panel);
  if (n < kNr || k % kKr != 0) std::memset(out, 0, PanelBytes(k));
  for (int32_t j = 0; j < n; ++j) {
    const int8_t* row = w + j * ldw;
    for (int32_t p = 0; p < k / kKr; ++p) std::memcpy(out + p * kStep + j * kKr, row + p * kKr, kKr);
    if (k % kKr != 0) std::memcpy(out + k / kKr * kStep + j * kKr, row + k / kKr * kKr, static_cast<size_t>(k % kKr));
  }
}

void UnpackPanel(int32_t n, int32_t k, const void* panel, int8_t* w, int64_t ldw) {
  const char* in = static_cast<const char*>(panel);
  for (int32_t j = 0; j < n; ++j) {
    int8_t* row = w + j * ldw;
    for (int32_t p = 0; p < k / kKr; ++p) std::memcpy(row + p * kKr, in + p * kStep + j * kKr, kKr);
    if (k % kKr != 0) std::memcpy(row + k / kKr * kKr, in + k / kKr * kStep + j * kKr, static_cast<size_t>(k % kKr));
  }
}

__m512i Broadcast(const uint8_t* a) {
  int32_t quad;
  std::memcpy(&quad, a, sizeof quad);
  return _mm512_set1_epi32(quad);
}

template <int kRows>
struct Block {
  __m512i acc[kRows][kVectors];

  // One quad of k for every row and column.
  [[gnu::always_inline]] void Step(const uint8_t* a, int64_t lda, const char* b) {
    __m512i w[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) w[v] = _mm512_loadu_si512(b + 64 * v);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const __m512i x = Broadcast(a + i * lda);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[i][v] = _mm512_dpbusd_epi32(acc[i][v], x, w[v]);
    }
  }

  [[gnu::always_inline]] void Clear() {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[i][v] = _mm512_setzero_si512();
  }

  [[gnu::always_inline]] void Multiply(const uint8_t* a, int64_t lda, const char* b, int32_t quads) {
    Clear();
    for (int32_t p = 0; p < quads; ++p) Step(a + p * kKr, lda, b + p * kStep);
  }

  // The same, and meanwhile the lines of the output and of `ahead` come into the cache, a few per step.
  [[gnu::always_inline]] void MultiplyAndFetch(const GemmS8Args& g, int32_t quads) {
    Clear();
    const char* b = static_cast<const char*>(g.panel);
    const bool floats = g.acc == nullptr;
    const char* row = floats ? reinterpret_cast<const char*>(g.c) : reinterpret_cast<const char*>(g.acc);
    const int64_t row_bytes = 4 * (floats ? g.ldc : g.ld_acc);
    const char* last_row = row + (kRows - 1) * row_bytes;
    const char* ahead = g.ahead_bytes > 0 ? g.ahead : b;
    const int64_t ahead_step = g.ahead_bytes / quads;
    for (int32_t p = 0; p < quads; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) _mm_prefetch(row + 64 * v, _MM_HINT_T0);
      _mm_prefetch(ahead, _MM_HINT_T1);
      Step(g.a + p * kKr, g.lda, b + p * kStep);
      row = row < last_row ? row + row_bytes : last_row;
      ahead += ahead_step;
    }
  }

  [[gnu::always_inline]] void Store(const GemmS8Args& g, int32_t column, const __mmask16* live) const {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        _mm512_mask_storeu_epi32(g.acc + i * g.ld_acc + column + 16 * v, live[v], acc[i][v]);
  }

  template <bool kResidual>
  [[gnu::always_inline]] void Finish(const GemmS8Args& g, int32_t column, const __mmask16* live) const {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int32_t col = column + 16 * v;
      const __m512i col_sum = _mm512_loadu_si512(g.col_sum + col);
      const __m512 col_scale = _mm512_loadu_ps(g.col_scale + col), bias = _mm512_loadu_ps(g.bias + col);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const __m512i correction = _mm512_mullo_epi32(_mm512_set1_epi32(g.row_zero[i]), col_sum);
        const __m512 t = _mm512_cvtepi32_ps(_mm512_sub_epi32(acc[i][v], correction));
        const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(g.row_scale[i]), col_scale);
        __m512 y = _mm512_add_ps(_mm512_mul_ps(t, scale), bias);
        if (kResidual) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(live[v], g.residual + i * g.ldr + col));
        _mm512_mask_storeu_ps(g.c + i * g.ldc + col, live[v], y);
      }
    }
  }
};

template <int kRows>
[[gnu::always_inline]] inline void Write(const Block<kRows>& tile, const GemmS8Args& g, int32_t column) {
  __mmask16 live[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const int32_t left = g.n - column - 16 * v;
    live[v] = static_cast<__mmask16>(left >= 16 ? 0xffffu : left <= 0 ? 0u : (1u << left) - 1u);
  }
  if (g.acc != nullptr)
    tile.Store(g, column, live);
  else if (g.residual != nullptr)
    tile.template Finish<true>(g, column, live);
  else
    tile.template Finish<false>(g, column, live);
}

template <int kRows>
void FewRows(const GemmS8Args& g) {
  const char* b = static_cast<const char*>(g.panel);
  for (int32_t column = 0; column < g.n; column += kNr, b += PanelBytes(g.k)) {
    Block<kRows> tile;
    tile.Multiply(g.a, g.lda, b, Quads(g.k));
    Write(tile, g, column);
  }
}

template <int kRows>
void OneTile(const GemmS8Args& g) {
  Block<kRows> tile;
  tile.MultiplyAndFetch(g, Quads(g.k));
  Write(tile, g, 0);
}

using Run = void (*)(const GemmS8Args&);

void Rows(const GemmS8Args& g) {
  static constexpr Run kByRows[kRowLimit] = {FewRows<1>, FewRows<2>, FewRows<3>, FewRows<4>,
                                             FewRows<5>, FewRows<6>, FewRows<7>, FewRows<8>};
  kByRows[g.m - 1](g);
}

void Tile(const GemmS8Args& g) {
  static constexpr Run kByRows[kMr - 6] = {OneTile<7>,  OneTile<8>,  OneTile<9>,  OneTile<10>,
                                           OneTile<11>, OneTile<12>, OneTile<13>, OneTile<14>};
  if (g.m < 7)
    Rows(g);
  else
    kByRows[g.m - 7](g);
}

}  // namespace

const GemmS8Kernel& GemmS8() {
  static constexpr GemmS8Kernel kernel = {
      "gemm_s8_14x32_avx512vnni", kMr, kNr, kKr, PanelBytes, PackPanel, UnpackPanel, Tile, kRowLimit, Rows};
  return kernel;
}

}  // namespace tersor::avx512vnni

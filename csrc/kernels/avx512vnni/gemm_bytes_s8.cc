// The 14x32 tile of gemm_s8.cc whose sums become bytes; the same panel. A panel with at most 16 live
// columns is half a tile: its second register of weights is skipped. Exact: sums begin at -offset instead of 0. The two
// clamps of the finish are one, since a product with a positive number keeps the order: fl(clamp(v, low, high) * s) =
// clamp(fl(v * s), fl(low * s), fl(high * s)).
#include <immintrin.h>

#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::avx512vnni {
namespace {

constexpr int32_t kMr = 14, kNr = 32, kKr = 4;
constexpr int32_t kStep = kNr * kKr;  // bytes of a panel per 4 values of k

struct Constants {
  explicit Constants(const FinishS8Args& f)
      : inv_scale(_mm512_set1_ps(f.inv_scale)),
        least(_mm512_max_ps(_mm512_set1_ps(static_cast<float>(-f.zero)), _mm512_set1_ps(f.low * f.inv_scale))),
        most(_mm512_min_ps(_mm512_set1_ps(static_cast<float>(255 - f.zero)), _mm512_set1_ps(f.high * f.inv_scale))),
        zero(_mm512_set1_epi16(static_cast<int16_t>(f.zero))),
        wide_zero(_mm512_set1_epi32(f.zero)),
        order(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)),
        residual_scale(_mm512_set1_ps(f.residual_scale)),
        residual_zero(_mm512_set1_epi32(f.residual_zero)) {}

  __m512 inv_scale, least, most;
  __m512i zero, wide_zero;  // int16, int32
  __m512i order;            // of the dwords of two rows: from lanes to columns
  __m512 residual_scale;
  __m512i residual_zero;
};

struct Columns {
  __m512 scale[2], bias[2];
  __mmask32 live;
};

// The integers before the zero point is added.
template <bool kResidual>
[[gnu::always_inline]] inline __m512i Round(__m512i sum, int v, const uint8_t* residual, const Columns& columns,
                                            const Constants& c) {
  __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), columns.scale[v]), columns.bias[v]);
  if (kResidual) {
    const __mmask16 live = static_cast<__mmask16>(columns.live >> (16 * v));
    const __m128i bytes = _mm_maskz_loadu_epi8(live, residual + 16 * v);
    const __m512i r = _mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), c.residual_zero);
    y = _mm512_add_ps(y, _mm512_mul_ps(_mm512_cvtepi32_ps(r), c.residual_scale));
  }
  return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(y, c.inv_scale), c.least), c.most));
}

// The sums of kRows rows: a chain of structs instead of an array, so that the compiler keeps all of them in registers.
template <int kRows, bool kWide>
struct Rows {
  __m512i low, high;
  Rows<kRows - 1, kWide> rest;

  [[gnu::always_inline]] void Set(__m512i begin_low, __m512i begin_high) {
    low = begin_low;
    if (kWide) high = begin_high;
    rest.Set(begin_low, begin_high);
  }

  [[gnu::always_inline]] void Step(const uint8_t* a, int64_t lda, __m512i w_low, __m512i w_high) {
    int32_t quad;
    std::memcpy(&quad, a, sizeof quad);
    const __m512i x = _mm512_set1_epi32(quad);
    low = _mm512_dpbusd_epi32(low, x, w_low);
    if (kWide) high = _mm512_dpbusd_epi32(high, x, w_high);
    rest.Step(a + lda, lda, w_low, w_high);
  }

  [[gnu::always_inline]] void Store(__m512i* to) const {
    to[0] = low;
    if (kWide) to[1] = high;
    rest.Store(to + (kWide ? 2 : 1));
  }
};

template <bool kWide>
struct Rows<0, kWide> {
  void Set(__m512i, __m512i) {}
  void Step(const uint8_t*, int64_t, __m512i, __m512i) {}
  void Store(__m512i*) const {}
};

// 32 columns of a row as int16, in lanes.
template <bool kResidual>
[[gnu::always_inline]] inline __m512i Words(const __m512i* sums, const uint8_t* residual, const Columns& columns,
                                            const Constants& c) {
  const __m512i low = Round<kResidual>(sums[0], 0, residual, columns, c);
  return _mm512_add_epi16(_mm512_packs_epi32(low, Round<kResidual>(sums[1], 1, residual, columns, c)), c.zero);
}

// Two rows at a time: one permutation puts their bytes in order. An odd last row goes with itself.
template <bool kResidual>
[[gnu::always_inline]] inline void WriteWide(int rows, const __m512i* sums, const FinishS8Args& f,
                                             const Columns& columns, const Constants& c) {
  for (int i = 0; i < rows; i += 2) {
    const int other = i + 1 < rows ? i + 1 : i;
    const __m512i words = Words<kResidual>(sums + 2 * i, f.residual + i * f.ldr, columns, c);
    const __m512i others = Words<kResidual>(sums + 2 * other, f.residual + other * f.ldr, columns, c);
    const __m512i bytes = _mm512_permutexvar_epi32(c.order, _mm512_packus_epi16(words, others));
    _mm256_mask_storeu_epi8(f.y + other * f.ldy, columns.live, _mm512_extracti64x4_epi64(bytes, 1));
    _mm256_mask_storeu_epi8(f.y + i * f.ldy, columns.live, _mm512_castsi512_si256(bytes));
  }
}

template <bool kResidual>
[[gnu::always_inline]] inline void WriteNarrow(int rows, const __m512i* sums, const FinishS8Args& f,
                                               const Columns& columns, const Constants& c) {
  for (int i = 0; i < rows; ++i) {
    const __m512i q = Round<kResidual>(sums[i], 0, f.residual + i * f.ldr, columns, c);
    _mm_mask_storeu_epi8(f.y + i * f.ldy, static_cast<__mmask16>(columns.live),
                         _mm512_cvtepi32_epi8(_mm512_add_epi32(q, c.wide_zero)));
  }
}

template <int kRows, bool kWide, bool kResidual>
void Run(const GemmS8Args& g, const FinishS8Args& f) {
  const __mmask32 live = g.n >= 32 ? 0xffffffffu : (__mmask32{1} << g.n) - 1;
  const __mmask16 halves[2] = {static_cast<__mmask16>(live), static_cast<__mmask16>(live >> 16)};
  Rows<kRows, kWide> rows;
  rows.Set(_mm512_sub_epi32(_mm512_setzero_si512(), _mm512_maskz_loadu_epi32(halves[0], f.offset)),
           _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_maskz_loadu_epi32(halves[1], f.offset + 16)));
  const char* b = static_cast<const char*>(g.panel);
  const uint8_t* a = g.a;
  for (int32_t p = (g.k + kKr - 1) / kKr; p > 0; --p, a += kKr, b += kStep)
    rows.Step(a, g.lda, _mm512_loadu_si512(b), kWide ? _mm512_loadu_si512(b + 64) : _mm512_setzero_si512());
  // The finish wants a dozen registers for its constants: the sums wait in memory, or they would be spilt in the loop.
  __m512i sums[kWide ? 2 * kRows : kRows];
  rows.Store(sums);
  asm volatile("" : : "r"(sums) : "memory");
  Columns columns;
  columns.live = live;
  for (int v = 0; v < 2; ++v) {
    columns.scale[v] = _mm512_maskz_loadu_ps(halves[v], f.scale + 16 * v);
    columns.bias[v] = _mm512_maskz_loadu_ps(halves[v], f.bias + 16 * v);
  }
  if constexpr (kWide)
    WriteWide<kResidual>(kRows, sums, f, columns, Constants(f));
  else
    WriteNarrow<kResidual>(kRows, sums, f, columns, Constants(f));
}

using RunTile = void (*)(const GemmS8Args& g, const FinishS8Args& f);

template <int kRows, bool kWide, bool kResidual>
constexpr void Fill(RunTile* table) {
  table[kRows - 1] = Run<kRows, kWide, kResidual>;
  if constexpr (kRows > 1) Fill<kRows - 1, kWide, kResidual>(table);
}

struct Tables {
  RunTile run[2][2][kMr];  // [residual][more than 16 columns][m - 1]
};

constexpr Tables MakeTables() {
  Tables tables{};
  Fill<kMr, false, false>(tables.run[0][0]);
  Fill<kMr, true, false>(tables.run[0][1]);
  Fill<kMr, false, true>(tables.run[1][0]);
  Fill<kMr, true, true>(tables.run[1][1]);
  return tables;
}

void Tile(const GemmS8Args& g, const FinishS8Args& f) {
  static constexpr Tables tables = MakeTables();
  tables.run[f.residual != nullptr ? 1 : 0][g.n > 16 ? 1 : 0][g.m - 1](g, f);
}

}  // namespace

const GemmBytesS8Kernel& GemmBytesS8() {
  static constexpr GemmBytesS8Kernel kernel = {"gemm_bytes_s8_14x32_avx512vnni", "gemm_s8_14x32_avx512vnni", Tile};
  return kernel;
}

}  // namespace tersor::avx512vnni

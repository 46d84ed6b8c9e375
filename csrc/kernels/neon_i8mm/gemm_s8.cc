// 8x8 tile of 2x2 blocks. Panel: [ceil(k / 16)][2][nr][8] int8, so that one register holds 8 values of k for 2
// columns. A stays row-major: 16 values of k of two rows are zipped to 8 of both.
// Exact: usmmla (unsigned x signed) sums into int32 and never saturates.
#include <arm_neon.h>

#include <cstring>

#include "kernels/kernel_api.h"
#include "kernels/neon_store.h"

namespace tersor::neon_i8mm {
namespace {

constexpr int32_t kMr = 8, kNr = 8, kKr = 16;
constexpr int32_t kHalf = kNr * 8;    // bytes of a panel per 8 values of k
constexpr int32_t kStep = kNr * kKr;  // and per 16
constexpr int32_t kRowLimit = 4;
static_assert(kMr / 2 * kNr / 2 + kMr + kNr / 2 <= 32, "sums, activations and weights fit the registers");

int32_t Steps(int32_t k) { return (k + kKr - 1) / kKr; }

size_t PanelBytes(int32_t k) { return static_cast<size_t>(Steps(k)) * kStep; }

void PackPanel(int32_t n, int32_t k, const int8_t* w, int64_t ldw, void* panel) {
  char* out = static_cast<char*>(panel);
  if (n < kNr || k % kKr != 0) std::memset(out, 0, PanelBytes(k));
  for (int32_t j = 0; j < n; ++j)
    for (int32_t p = 0; p < k; p += 8)
      std::memcpy(out + p / 8 * kHalf + j * 8, w + j * ldw + p, static_cast<size_t>(k - p < 8 ? k - p : 8));
}

void UnpackPanel(int32_t n, int32_t k, const void* panel, int8_t* w, int64_t ldw) {
  const char* in = static_cast<const char*>(panel);
  for (int32_t j = 0; j < n; ++j)
    for (int32_t p = 0; p < k; p += 8)
      std::memcpy(w + j * ldw + p, in + p / 8 * kHalf + j * 8, static_cast<size_t>(k - p < 8 ? k - p : 8));
}

uint8x16_t LowHalves(uint8x16_t a, uint8x16_t b) {
  return vreinterpretq_u8_u64(vzip1q_u64(vreinterpretq_u64_u8(a), vreinterpretq_u64_u8(b)));
}
uint8x16_t HighHalves(uint8x16_t a, uint8x16_t b) {
  return vreinterpretq_u8_u64(vzip2q_u64(vreinterpretq_u64_u8(a), vreinterpretq_u64_u8(b)));
}
int32x4_t LowHalves(int32x4_t a, int32x4_t b) {
  return vreinterpretq_s32_s64(vzip1q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
}
int32x4_t HighHalves(int32x4_t a, int32x4_t b) {
  return vreinterpretq_s32_s64(vzip2q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
}

// kPairs pairs of rows against kPanels panels side by side.
template <int kPairs, int kPanels>
struct Block {
  int32x4_t acc[kPanels][kPairs][kNr / 2];  // each: row 0 columns 0, 1, row 1 columns 0, 1

  Block() {
#pragma GCC unroll 4
    for (int v = 0; v < kPanels; ++v)
#pragma GCC unroll 4
      for (int i = 0; i < kPairs; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < kNr / 2; ++j) acc[v][i][j] = vdupq_n_s32(0);
  }

  void Half(const uint8x16_t* a, int v, const int8_t* w) {
#pragma GCC unroll 4
    for (int j = 0; j < kNr / 2; ++j) {
      const int8x16_t columns = vld1q_s8(w + j * 16);
#pragma GCC unroll 4
      for (int i = 0; i < kPairs; ++i) acc[v][i][j] = vusmmlaq_s32(acc[v][i][j], a[i], columns);
    }
  }

  // An odd number of rows computes the last one twice.
  void Multiply(const uint8_t* a, int64_t lda, int32_t rows, const int8_t* panel, size_t panel_bytes, int32_t steps) {
    const uint8_t* row[2 * kPairs];
    for (int i = 0; i < 2 * kPairs; ++i) row[i] = a + (i < rows ? i : rows - 1) * lda;
    for (int32_t p = 0; p < steps; ++p) {
      uint8x16_t low[kPairs], high[kPairs];
#pragma GCC unroll 4
      for (int i = 0; i < kPairs; ++i) {
        const uint8x16_t even = vld1q_u8(row[2 * i] + p * kKr), odd = vld1q_u8(row[2 * i + 1] + p * kKr);
        low[i] = LowHalves(even, odd);
        high[i] = HighHalves(even, odd);
      }
#pragma GCC unroll 4
      for (int v = 0; v < kPanels; ++v) {
        const int8_t* w = panel + static_cast<size_t>(v) * panel_bytes + p * kStep;
        Half(low, v, w);
        Half(high, v, w + kHalf);
      }
    }
  }
};

template <int kPairs, int kPanels>
void RunBlock(const GemmS8Args& g, int32_t column) {
  const size_t bytes = PanelBytes(g.k);
  Block<kPairs, kPanels> block;
  block.Multiply(g.a, g.lda, g.m, static_cast<const int8_t*>(g.panel) + static_cast<size_t>(column / kNr) * bytes,
                 bytes, Steps(g.k));
#pragma GCC unroll 4
  for (int v = 0; v < kPanels; ++v)
#pragma GCC unroll 4
    for (int i = 0; i < kPairs; ++i) {
      const int32x4_t* acc = block.acc[v][i];
      StoreSums(g, 2 * i, column + v * kNr, {LowHalves(acc[0], acc[1]), LowHalves(acc[2], acc[3])});
      if (2 * i + 1 < g.m)
        StoreSums(g, 2 * i + 1, column + v * kNr, {HighHalves(acc[0], acc[1]), HighHalves(acc[2], acc[3])});
    }
}

// Few rows read several panels at once, so that enough sums are in flight.
template <int kPairs, int kPanels>
void Run(const GemmS8Args& g) {
  int32_t column = 0;
  for (; g.n - column > (kPanels - 1) * kNr; column += kPanels * kNr) RunBlock<kPairs, kPanels>(g, column);
  for (; column < g.n; column += kNr) RunBlock<kPairs, 1>(g, column);
}

void RunRows(const GemmS8Args& g) {
  using Fn = void (*)(const GemmS8Args&);
  static constexpr Fn kByPairs[kMr / 2] = {Run<1, 4>, Run<2, 2>, Run<3, 1>, Run<4, 1>};
  kByPairs[(g.m - 1) / 2](g);
}

}  // namespace

const GemmS8Kernel& GemmS8() {
  static constexpr GemmS8Kernel kernel = {
      "gemm_s8_8x8_neon_i8mm", kMr, kNr, kKr, PanelBytes, PackPanel, UnpackPanel, RunRows, kRowLimit, RunRows};
  return kernel;
}

}  // namespace tersor::neon_i8mm

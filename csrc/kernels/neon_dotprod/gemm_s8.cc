// 8x8 tile. Panel: [ceil(k / 16)][4][nr][4] int8, so that one register holds 4 values of k for 4 columns.
// A stays row-major: one register holds 16 values of k of a row, and sdot takes 4 of them by lane.
// Exact: sdot wants signed x signed, so A becomes a - 128 (xor 0x80) and the sums start at 128 * col_sum, which is
// what that takes away. No partial sum leaves int32: each part is below 2^31 / 2 for k <= 65536.
#include <arm_neon.h>

#include <cstring>

#include "kernels/kernel_api.h"
#include "kernels/neon_store.h"

namespace tersor::neon_dotprod {
namespace {

constexpr int32_t kMr = 8, kNr = 8, kKr = 16;
constexpr int32_t kQuad = kNr * 4;    // bytes of a panel per 4 values of k
constexpr int32_t kStep = kNr * kKr;  // and per 16
constexpr int32_t kRowLimit = 4;
static_assert(kMr * 2 + kMr + 2 <= 32, "sums, activations and weights fit the registers");

int32_t Steps(int32_t k) { return (k + kKr - 1) / kKr; }

size_t PanelBytes(int32_t k) { return static_cast<size_t>(Steps(k)) * kStep; }

void PackPanel(int32_t n, int32_t k, const int8_t* w, int64_t ldw, void* panel) {
  char* out = static_cast<char*>(panel);
  if (n < kNr || k % kKr != 0) std::memset(out, 0, PanelBytes(k));
  for (int32_t j = 0; j < n; ++j)
    for (int32_t p = 0; p < k; p += 4)
      std::memcpy(out + p / 4 * kQuad + j * 4, w + j * ldw + p, static_cast<size_t>(k - p < 4 ? k - p : 4));
}

void UnpackPanel(int32_t n, int32_t k, const void* panel, int8_t* w, int64_t ldw) {
  const char* in = static_cast<const char*>(panel);
  for (int32_t j = 0; j < n; ++j)
    for (int32_t p = 0; p < k; p += 4)
      std::memcpy(w + j * ldw + p, in + p / 4 * kQuad + j * 4, static_cast<size_t>(k - p < 4 ? k - p : 4));
}

// kRows rows against kPanels panels side by side.
template <int kRows, int kPanels>
struct Block {
  int32x4_t acc[kPanels][kRows][2];

  void Start(const int32_t* col_sum) {
#pragma GCC unroll 4
    for (int v = 0; v < kPanels; ++v)
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        acc[v][i][0] = vshlq_n_s32(vld1q_s32(col_sum + v * kNr), 7);
        acc[v][i][1] = vshlq_n_s32(vld1q_s32(col_sum + v * kNr + 4), 7);
      }
  }

  template <int kLane>
  void Quad(const int8x16_t* a, int v, const int8_t* w) {
    const int8x16_t low = vld1q_s8(w + kLane * kQuad), high = vld1q_s8(w + kLane * kQuad + 16);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      acc[v][i][0] = vdotq_laneq_s32(acc[v][i][0], low, a[i], kLane);
      acc[v][i][1] = vdotq_laneq_s32(acc[v][i][1], high, a[i], kLane);
    }
  }

  void Multiply(const uint8_t* rows, int64_t lda, const int8_t* panel, size_t panel_bytes, int32_t steps) {
    for (int32_t p = 0; p < steps; ++p) {
      int8x16_t a[kRows];
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i)
        a[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(rows + i * lda + p * kKr), vdupq_n_u8(0x80)));
#pragma GCC unroll 4
      for (int v = 0; v < kPanels; ++v) {
        const int8_t* w = panel + static_cast<size_t>(v) * panel_bytes + p * kStep;
        Quad<0>(a, v, w);
        Quad<1>(a, v, w);
        Quad<2>(a, v, w);
        Quad<3>(a, v, w);
      }
    }
  }
};

template <int kRows, int kPanels>
void RunBlock(const GemmS8Args& g, int32_t column) {
  const size_t bytes = PanelBytes(g.k);
  Block<kRows, kPanels> block;
  block.Start(g.col_sum + column);
  block.Multiply(g.a, g.lda, static_cast<const int8_t*>(g.panel) + static_cast<size_t>(column / kNr) * bytes, bytes,
                 Steps(g.k));
#pragma GCC unroll 4
  for (int v = 0; v < kPanels; ++v)
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) StoreSums(g, i, column + v * kNr, {block.acc[v][i][0], block.acc[v][i][1]});
}

// Few rows read several panels at once, so that enough sums are in flight.
template <int kRows, int kPanels>
void Run(const GemmS8Args& g) {
  int32_t column = 0;
  for (; g.n - column > (kPanels - 1) * kNr; column += kPanels * kNr) RunBlock<kRows, kPanels>(g, column);
  for (; column < g.n; column += kNr) RunBlock<kRows, 1>(g, column);
}

void RunRows(const GemmS8Args& g) {
  using Fn = void (*)(const GemmS8Args&);
  static constexpr Fn kByRows[kMr] = {Run<1, 4>, Run<2, 4>, Run<3, 2>, Run<4, 2>,
                                      Run<5, 1>, Run<6, 1>, Run<7, 1>, Run<8, 1>};
  kByRows[g.m - 1](g);
}

}  // namespace

const GemmS8Kernel& GemmS8() {
  static constexpr GemmS8Kernel kernel = {
      "gemm_s8_8x8_neon_dotprod", kMr, kNr, kKr, PanelBytes, PackPanel, UnpackPanel, RunRows, kRowLimit, RunRows};
  return kernel;
}

}  // namespace tersor::neon_dotprod

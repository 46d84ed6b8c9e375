// 4 weight rows by a strip of 64 tokens. Panel: [k / 4][64][4] uint8, so that a zmm holds one quad of k for 16 tokens.
// The four quads of a step are loaded at once and broadcast by shuffles; 16 sums stay in registers.
// Exact: vpdpbusd (unsigned x signed) sums into int32 and never saturates.
#include "kernels/avx512vnni/spmm_s8_columns.h"
#include "kernels/spmm_s8_lanes16.h"
#include "kernels/spmm_s8_strip.h"

namespace tersor::avx512vnni {
namespace {

struct Avx512Vnni : Lanes16 {
  using Quads = I;
  using Weights = I;
  static constexpr int32_t kRows = 4, kVectors = 4, kTokenBytes = 4, kDepth = 768, kSumShift = 0;
  static_assert(kRows * kVectors + kVectors + kRows + 1 <= 32, "sums, tokens and broadcasts fit the registers");

  static Quads LoadQuads(const int8_t* q) { return LoadStep(q); }
  template <int r>
  static Weights Quad(Quads q) {
    return Broadcast<r>(q);
  }
  static I MulAdd(I acc, const uint8_t* tokens, Weights w) { return _mm512_dpbusd_epi32(acc, LoadBytes(tokens), w); }
  static void StoreTokens(uint8_t* p, I quads) { StoreBytes(p, quads); }
};

constexpr SpmmS8Kernel MakeKernel() {
  using Quads = Strip<Avx512Vnni>;
  SpmmS8Kernel kernel = Quads::Kernel("spmm_s8_4x64_avx512vnni");
  kernel.column_bytes = Columns::kRecord;
  kernel.quad_cost = 20;
  kernel.columns_cost = 28;
  kernel.arrange_cost = 3;
  kernel.arrange = Columns::Arrange;
  kernel.multiply_columns = Columns::Multiply<Quads>;
  return kernel;
}

}  // namespace

const SpmmS8Kernel& SpmmS8() {
  static constexpr SpmmS8Kernel kernel = MakeKernel();
  return kernel;
}

}  // namespace tersor::avx512vnni

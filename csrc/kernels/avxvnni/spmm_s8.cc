// 2 weight rows by a strip of 32 tokens. Panel: [k / 4][32][4] uint8, so that a ymm holds one quad of k for 8 tokens.
// Exact: vpdpbusd (unsigned x signed) sums into int32 and never saturates.
#include "kernels/avxvnni/isa_name.h"
#include "kernels/spmm_s8_lanes8.h"
#include "kernels/spmm_s8_strip.h"

namespace tersor::TERSOR_ISA_NAME {
namespace {

struct AvxVnni : Lanes8 {
  using Quads = I;
  using Weights = I;
  static constexpr int32_t kRows = 2, kVectors = 4, kTokenBytes = 4, kDepth = 768, kSumShift = 0;
  static_assert(kRows * kVectors + kVectors + kRows + 1 <= 16, "sums, tokens and broadcasts fit the registers");

  static Quads LoadQuads(const int8_t* q) { return LoadStep(q); }
  template <int r>
  static Weights Quad(Quads q) {
    return Broadcast<r>(q);
  }
  static I MulAdd(I acc, const uint8_t* tokens, Weights w) {
#ifdef __AVX512VNNI__
    return _mm256_dpbusd_epi32(acc, LoadBytes(tokens), w);
#else
    return _mm256_dpbusd_avx_epi32(acc, LoadBytes(tokens), w);
#endif
  }
  static void StoreTokens(uint8_t* p, I quads) { StoreBytes(p, quads); }
};

}  // namespace

const SpmmS8Kernel& SpmmS8() {
  static constexpr SpmmS8Kernel kernel = Strip<AvxVnni>::Kernel("spmm_s8_2x32_" TERSOR_QUOTE(TERSOR_ISA_NAME));
  return kernel;
}

}  // namespace tersor::TERSOR_ISA_NAME

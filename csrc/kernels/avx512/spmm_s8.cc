// 4 weight rows by a strip of 64 tokens, for CPUs without VNNI. Panel: per quad and 16 tokens, first the values 0 and 2
// of each, then 1 and 3, as int16: a mask and a shift tell them apart, in the weights as well. Exact: vpmaddwd sums two
// products of int16 into int32, at most 2 * 255 * 127; vpmaddubsw would saturate.
#include "kernels/spmm_s8_lanes16.h"
#include "kernels/spmm_s8_strip.h"

namespace tersor::avx512 {
namespace {

struct Avx512 : Lanes16 {
  struct Pairs {
    I even, odd;  // values 0 and 2, 1 and 3
  };
  using Quads = Pairs;
  using Weights = Pairs;
  static constexpr int32_t kRows = 4, kVectors = 4, kTokenBytes = 8, kDepth = 256, kSumShift = 0;
  static_assert(kRows * kVectors + 2 + 2 + 1 <= 32, "sums, quads, broadcasts and product fit the registers");

  static Quads LoadQuads(const int8_t* q) {
    const I step = LoadStep(q);
    return {_mm512_srai_epi16(_mm512_slli_epi16(step, 8), 8), _mm512_srai_epi16(step, 8)};
  }
  template <int r>
  static Weights Quad(const Quads& q) {
    return {Broadcast<r>(q.even), Broadcast<r>(q.odd)};
  }
  static I MulAdd(I acc, const uint8_t* tokens, const Weights& w) {
    acc = _mm512_add_epi32(acc, _mm512_madd_epi16(LoadBytes(tokens), w.even));
    return _mm512_add_epi32(acc, _mm512_madd_epi16(LoadBytes(tokens + 4 * kLanes), w.odd));
  }
  static void StoreTokens(uint8_t* p, I quads) {
    const I low = _mm512_set1_epi16(0xff);
    StoreBytes(p, _mm512_and_si512(quads, low));
    StoreBytes(p + 4 * kLanes, _mm512_srli_epi16(quads, 8));
  }
};

}  // namespace

const SpmmS8Kernel& SpmmS8() {
  static constexpr SpmmS8Kernel kernel = Strip<Avx512>::Kernel("spmm_s8_4x64_avx512");
  return kernel;
}

}  // namespace tersor::avx512

// 2 weight rows by a strip of 32 tokens. Panel: [k / 4][32][4] uint8, so that a register holds one quad for 4 tokens.
// Exact: usdot (unsigned x signed) sums into int32 and never saturates.
#include "kernels/spmm_s8_lanes4.h"
#include "kernels/spmm_s8_strip.h"

namespace tersor::neon_i8mm {
namespace {

struct I8mm : Lanes4 {
  static constexpr int32_t kSumShift = 0;

  static I MulAdd(I acc, const uint8_t* tokens, Weights w) { return vusdotq_s32(acc, vld1q_u8(tokens), w); }
  static void StoreTokens(uint8_t* p, I quads) { vst1q_u8(p, vreinterpretq_u8_s32(quads)); }
};

}  // namespace

const SpmmS8Kernel& SpmmS8() {
  static constexpr SpmmS8Kernel kernel = Strip<I8mm>::Kernel("spmm_s8_2x32_neon_i8mm");
  return kernel;
}

}  // namespace tersor::neon_i8mm

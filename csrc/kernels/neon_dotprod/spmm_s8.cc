// 2 weight rows by a strip of 32 tokens. Panel: [k / 4][32][4] int8, so that a register holds one quad for 4 tokens.
// Exact: sdot wants signed x signed, so the tokens become a - 128 (xor 0x80) as they are packed, and the sums start at
// 128 * col_sum, which is what that takes away. No partial sum leaves int32 for k <= 65536.
#include "kernels/spmm_s8_lanes4.h"
#include "kernels/spmm_s8_strip.h"

namespace tersor::neon_dotprod {
namespace {

struct Dotprod : Lanes4 {
  static constexpr int32_t kSumShift = 7;

  static I MulAdd(I acc, const uint8_t* tokens, Weights w) {
    return vdotq_s32(acc, vreinterpretq_s8_u8(vld1q_u8(tokens)), w);
  }
  static void StoreTokens(uint8_t* p, I quads) { vst1q_u8(p, veorq_u8(vreinterpretq_u8_s32(quads), vdupq_n_u8(0x80))); }
};

}  // namespace

const SpmmS8Kernel& SpmmS8() {
  static constexpr SpmmS8Kernel kernel = Strip<Dotprod>::Kernel("spmm_s8_2x32_neon_dotprod");
  return kernel;
}

}  // namespace tersor::neon_dotprod

// 4 rows of x by 16 weight rows; a register holds 16 values of k for one of them, looked up by tbl.
// Exact: sdot wants signed x signed, so x becomes x - 128 (xor 0x80, 0 beyond k), and 128 * col_sum gives that back.
#include <arm_neon.h>

#include "kernels/lut4_rows.h"

namespace tersor::neon_dotprod {
namespace {

struct Lanes16 {
  using W = int8x16_t;
  using M = uint8x16_t;
  using X = int8x16_t;
  using Sums = int32x4_t;
  static constexpr int32_t kPlaces = 1;
  static constexpr bool kSigned = true;
  static constexpr int AtOnce(int m) { return m == 1 ? 8 : 4; }

  static W Load(const uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
  static void Store(int8_t* p, W w) { vst1q_s8(p, w); }
  static W Low(W codes) { return vandq_s8(codes, vdupq_n_s8(15)); }
  static W High(W codes) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(codes), 4)); }
  static W Look(W table, W codes) { return vqtbl1q_s8(table, vreinterpretq_u8_s8(codes)); }
  static M LoadBits(const uint8_t* p) {
    const uint8x8_t place = vcreate_u8(0x8040201008040201);
    return vtstq_u8(vcombine_u8(vdup_n_u8(p[0]), vdup_n_u8(p[1])), vcombine_u8(place, place));
  }
  static W Pick(M bits, W set, W clear) { return vbslq_s8(bits, set, clear); }
  static X LoadX(const uint8_t* p) { return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p), vdupq_n_u8(0x80))); }
  static X LoadX(const uint8_t* p, int32_t live) {
    static constexpr int8_t kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int8_t bound = static_cast<int8_t>(live < 0 ? 0 : live > 16 ? 16 : live);
    return vandq_s8(LoadX(p), vreinterpretq_s8_u8(vcltq_s8(vld1q_s8(kLanes), vdupq_n_s8(bound))));
  }
  static Sums Zero() { return vdupq_n_s32(0); }
  static Sums MulAdd(Sums sums, W w, X x) { return vdotq_s32(sums, w, x); }
  template <int kCount>
  static void Reduce(const Sums* v, int32_t* out) {
    for (int i = 0; i < kCount; ++i) out[i] = vaddvq_s32(v[i]);
  }
  static void ToRows(const int32_t* places, int32_t* rows) {
    for (int32_t p = 0; p < 16; ++p) rows[RowOfPlace(p)] = places[p];
  }
};

}  // namespace

const Lut4Kernel& Lut4() {
  static constexpr Lut4Kernel kernel = {"lut4_4x16_neon_dotprod", kMaxM,   Rows<Lanes16>,
                                        DecodeRows<Lanes16>,      nullptr, nullptr};
  return kernel;
}

}  // namespace tersor::neon_dotprod

// 4 rows of x by 16 weight rows; a register holds 16 values of k for one of them, looked up by tbl.
// Exact: usdot takes unsigned x and signed weights and sums into int32.
#include <arm_neon.h>

#include "kernels/lut4_rows.h"

namespace tersor::neon_i8mm {
namespace {

struct Lanes16 {
  using W = int8x16_t;
  using M = uint8x16_t;
  using X = uint8x16_t;
  using Sums = int32x4_t;
  static constexpr int32_t kPlaces = 1;
  static constexpr bool kSigned = false;
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
  static X LoadX(const uint8_t* p) { return vld1q_u8(p); }
  static X LoadX(const uint8_t* p, int32_t) { return vld1q_u8(p); }  // zeros follow
  static Sums Zero() { return vdupq_n_s32(0); }
  static Sums MulAdd(Sums sums, W w, X x) { return vusdotq_s32(sums, x, w); }
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
  static constexpr Lut4Kernel kernel = {"lut4_4x16_neon_i8mm", kMaxM,   Rows<Lanes16>,
                                        DecodeRows<Lanes16>,   nullptr, nullptr};
  return kernel;
}

}  // namespace tersor::neon_i8mm

// One lane. The fused multiply-adds are asked for: a CPU without the instruction gets the C library's exact one.
#include "kernels/activation_math.h"

namespace tersor::scalar {
namespace {

struct Lane {
  using F = float;
  using I = uint32_t;
  static constexpr int64_t kLanes = 1;

  static F Load(const float* p) { return *p; }
  static void Store(float* p, F v) { *p = v; }
  static F Set(float v) { return v; }
  static I SetInt(int32_t v) { return static_cast<I>(v); }
  static F Add(F a, F b) { return a + b; }
  static F Sub(F a, F b) { return a - b; }
  static F Mul(F a, F b) { return a * b; }
  static F Div(F a, F b) { return a / b; }
  static F Fma(F a, F b, F c) { return __builtin_fmaf(a, b, c); }
  static F Max(F a, F b) { return a > b ? a : b; }
  static F Min(F a, F b) { return a < b ? a : b; }
  static F Abs(F a) { return FromBits(Bits(a) & 0x7fffffffu); }
  static F IfNegative(F v, F a, F b) { return v < 0.0f ? a : b; }
  static I Bits(F v) {
    I bits;
    std::memcpy(&bits, &v, sizeof bits);
    return bits;
  }
  static F FromBits(I bits) {
    F v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
  }
  static I AddInt(I a, I b) { return a + b; }
  static I SubInt(I a, I b) { return a - b; }
  static I HalfInt(I a) { return a >> 1 | (a & 0x80000000u); }
  static I ToExponent(I a) { return a << 23; }
};

}  // namespace

const ActivationKernel& Activation() {
  static constexpr ActivationKernel kernel = {"activation_scalar", ApplyActivation<Lane>};
  return kernel;
}

}  // namespace tersor::scalar

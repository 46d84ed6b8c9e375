// One float at a time, as the vector of the shared algorithms. The fused multiply-adds are asked for: a CPU without the
// instruction gets the C library's exact one.
//
// Included only by kernel files of this instruction set and of those above it: all of it is in their anonymous
// namespaces.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

struct Lane {
  using F = float;
  static constexpr int64_t kLanes = 1;

  static F Load(const float* p) { return *p; }
  static void Store(float* p, F v) { *p = v; }
  static F Set(float v) { return v; }
  static F Add(F a, F b) { return a + b; }
  static F Sub(F a, F b) { return a - b; }
  static F Mul(F a, F b) { return a * b; }
  static F Div(F a, F b) { return a / b; }
  static F Fma(F a, F b, F c) { return __builtin_fmaf(a, b, c); }
  static F Fms(F a, F b, F c) { return __builtin_fmaf(a, b, -c); }
  static F Max(F a, F b) { return a > b ? a : b; }
  static F Min(F a, F b) { return a < b ? a : b; }
  static F Abs(F a) { return FromBits(Bits(a) & 0x7fffffffu); }
  static F IfNegative(F v, F a, F b) { return v < 0.0f ? a : b; }
  static F Scale(F x, F n) {
    const uint32_t i = Bits(n + 0x1.8p23f) - Bits(0x1.8p23f), half = i >> 1 | (i & 0x80000000u);
    return x * Power(half) * Power(i - half);
  }

 private:
  static F Power(uint32_t n) { return FromBits((n + 127) << 23); }
  static uint32_t Bits(F v) {
    uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    return bits;
  }
  static F FromBits(uint32_t bits) {
    F v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
  }
};

}  // namespace

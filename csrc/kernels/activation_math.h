// The activation functions: one algorithm over a vector type, so that every ISA gives the same bits. Derivation and
// measured errors: docs/kernels.md, "Activations".
//
// Included only by kernels/<isa>/activation.cc, which defines, in its own anonymous namespace, a vector type V:
//   F, I               float lanes and 32-bit integer lanes;  kLanes  how many
//   Load, Store        F from and to unaligned floats
//   Set, SetInt        one value in every lane
//   Add Sub Mul Div    rounded once; Fma(a, b, c) = a * b + c rounded once
//   Max, Min           a > b ? a : b and a < b ? a : b: with a NaN on either side the result is b
//   Abs
//   IfNegative(v, a, b)  v < 0 ? a : b
//   Bits, FromBits     the same 32 bits as I or as F
//   AddInt, SubInt, HalfInt (arithmetic shift right by 1), ToExponent (shift left by 23)
#pragma once
#include <cstring>

#include "kernels/kernel_api.h"

namespace {

// exp(x) = p * 2^n
template <typename V>
struct Exp {
  typename V::F p;  // in [0.7, 1.42]
  typename V::I n;
};

// 2^n as two factors, both normal for -250 < n < 250.
template <typename V>
struct PowerOfTwo {
  typename V::F first, second;
};

template <typename V>
typename V::F ExactPower(typename V::I n) {
  return V::FromBits(V::ToExponent(V::AddInt(n, V::SetInt(127))));
}

template <typename V>
PowerOfTwo<V> SplitPower(typename V::I n) {
  const typename V::I half = V::HalfInt(n);
  return {ExactPower<V>(half), ExactPower<V>(V::SubInt(n, half))};
}

// exp(x + x_low) for x in [-170, 0] and |x_low| tiny beside 1.
template <typename V>
Exp<V> ExpOf(typename V::F x, typename V::F x_low) {
  using F = typename V::F;
  const F shift = V::Set(0x1.8p23f);  // adding it rounds to an integer, which the low bits then hold
  const F shifted = V::Fma(x, V::Set(0x1.715476p0f), shift);
  const F n = V::Sub(shifted, shift);
  F r = V::Fma(n, V::Set(-0x1.62e43p-1f), x);  // exact
  r = V::Add(V::Fma(n, V::Set(0x1.05c61p-29f), r), x_low);
  F q = V::Fma(r, V::Set(0x1.6a225ap-10f), V::Set(0x1.123b02p-7f));
  q = V::Fma(r, q, V::Set(0x1.5558f8p-5f));
  q = V::Fma(r, q, V::Set(0x1.555490p-3f));
  q = V::Fma(r, q, V::Set(0x1.fffffcp-2f));
  const F p = V::Add(V::Set(1.0f), V::Fma(V::Mul(r, r), q, r));
  return {p, V::SubInt(V::Bits(shifted), V::Bits(shift))};
}

template <typename V>
typename V::F Relu(typename V::F v) {
  return V::Max(V::Set(0.0f), v);
}

// v / (1 + exp(-y)) for v >= 0 and v / (1 + exp(y)) for v < 0, where y = high + low >= 0 and a = |v|, both clamped at
// a point where the negative side is 0. The power of two comes last, so the tail keeps its precision down to underflow.
template <typename V>
typename V::F TimesSigmoid(typename V::F v, typename V::F a, typename V::F high, typename V::F low) {
  using F = typename V::F;
  const F zero = V::Set(0.0f), one = V::Set(1.0f);
  const Exp<V> e = ExpOf<V>(V::Sub(zero, high), V::Sub(zero, low));
  const PowerOfTwo<V> power = SplitPower<V>(e.n);
  const F denominator = V::Fma(V::Mul(e.p, power.first), power.second, one);
  const F quotient = V::Div(V::IfNegative(v, V::Mul(V::Sub(zero, a), e.p), v), denominator);
  return V::IfNegative(v, V::Mul(V::Mul(quotient, power.first), power.second), quotient);
}

template <typename V>
typename V::F Silu(typename V::F v) {
  const typename V::F a = V::Min(V::Set(110.0f), V::Abs(v));
  return TimesSigmoid<V>(v, a, a, V::Set(0.0f));
}

// 0.5 v (1 + tanh(sqrt(2/pi) (v + 0.044715 v^3))) = v / (1 + exp(-y)), y = v (c0 + c1 v^2), with y kept to twice the
// precision: in the tail it is near 100 and its error is the relative error of the result.
template <typename V>
typename V::F GeluTanh(typename V::F v) {
  using F = typename V::F;
  const F c0 = V::Set(0x1.988454p0f), c0_low = V::Set(-0x1.857936p-25f);
  const F c1 = V::Set(0x1.2444f2p-4f), c1_low = V::Set(0x1.49b16ap-29f);
  const F a = V::Min(V::Set(11.0f), V::Abs(v)), zero = V::Set(0.0f);
  const F square = V::Mul(a, a), square_low = V::Fma(a, a, V::Sub(zero, square));
  const F cubic = V::Mul(c1, square);
  F low = V::Fma(c1, square, V::Sub(zero, cubic));
  low = V::Add(low, V::Fma(c1, square_low, V::Fma(c1_low, square, c0_low)));
  const F sum = V::Add(c0, cubic), part = V::Sub(sum, c0);
  low = V::Add(low, V::Add(V::Sub(c0, V::Sub(sum, part)), V::Sub(cubic, part)));
  const F y = V::Mul(a, sum);
  return TimesSigmoid<V>(v, a, y, V::Fma(a, low, V::Fma(a, sum, V::Sub(zero, y))));
}

// max(v, 0) - a Q(a) with a = |v| and Q(a) = erfc(a / sqrt 2) / 2 = -exp(-a^2 / 2) h(t) / (a + 2.5), where
// t = (a - 2.5) / (a + 2.5) and h is a negative polynomial, so that a zero keeps its sign. a^2 is kept to twice the
// precision.
template <typename V>
typename V::F Gelu(typename V::F v) {
  using F = typename V::F;
  const F a = V::Min(V::Set(14.5f), V::Abs(v)), zero = V::Set(0.0f), half = V::Set(-0.5f);
  const F square = V::Mul(a, a), square_low = V::Fma(a, a, V::Sub(zero, square));
  const Exp<V> e = ExpOf<V>(V::Mul(half, square), V::Mul(half, square_low));
  const F share = V::Div(a, V::Add(a, V::Set(2.5f)));
  const F t = V::Fma(V::Set(2.0f), share, V::Set(-1.0f));
  F h = V::Fma(t, V::Set(0x1.49cfbep-13f), V::Set(0x1.45f704p-12f));
  h = V::Fma(t, h, V::Set(-0x1.66cb24p-11f));
  h = V::Fma(t, h, V::Set(-0x1.4abbcap-9f));
  h = V::Fma(t, h, V::Set(0x1.a3aeaep-10f));
  h = V::Fma(t, h, V::Set(0x1.0c77f4p-6f));
  h = V::Fma(t, h, V::Set(-0x1.2ea478p-7f));
  h = V::Fma(t, h, V::Set(-0x1.0e4f2ep-3f));
  h = V::Fma(t, h, V::Set(0x1.bc19c2p-2f));
  h = V::Fma(t, h, V::Set(-0x1.69cee6p-1f));
  const PowerOfTwo<V> power = SplitPower<V>(e.n);
  const F tail = V::Mul(V::Mul(V::Mul(share, e.p), h), power.first);
  return V::Fma(tail, power.second, V::Max(V::Set(-0.0f), v));
}

// Lanes past the end hold zeros and go through the same instructions.
template <typename V, typename V::F (*kFunction)(typename V::F)>
void ApplyFunction(int64_t n, float* x) {
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) V::Store(x + i, kFunction(V::Load(x + i)));
  if (i == n) return;
  float rest[V::kLanes] = {};
  std::memcpy(rest, x + i, static_cast<size_t>(n - i) * sizeof(float));
  V::Store(rest, kFunction(V::Load(rest)));
  std::memcpy(x + i, rest, static_cast<size_t>(n - i) * sizeof(float));
}

template <typename V>
void ApplyActivation(tersor::Activation activation, int64_t n, float* x) {
  switch (activation) {
    case tersor::Activation::kNone:
      return;
    case tersor::Activation::kRelu:
      return ApplyFunction<V, Relu<V>>(n, x);
    case tersor::Activation::kGelu:
      return ApplyFunction<V, Gelu<V>>(n, x);
    case tersor::Activation::kGeluTanh:
      return ApplyFunction<V, GeluTanh<V>>(n, x);
    case tersor::Activation::kSilu:
      return ApplyFunction<V, Silu<V>>(n, x);
  }
}

}  // namespace

// The activation functions: one algorithm over a vector type, so that every ISA gives the same bits. Derivation and
// measured errors: docs/kernels.md, "Activations".
//
// Included only by kernels/<isa>/activation.cc and kernels/cuda/epilogue.cuh, which define, in their own anonymous
// namespace, a vector type V:
//   F, kLanes            the vector and how many floats it holds
//   Load, Store          from and to unaligned memory;  Set: one value in every lane
//   Add Sub Mul Div      each rounded once
//   Fma(a, b, c)         a * b + c rounded once;  Fms(a, b, c): a * b - c rounded once
//   Max, Min, Abs        a > b ? a : b and a < b ? a : b, so b when either is NaN
//   IfNegative(v, a, b)  v < 0 ? a : b
//   Scale(x, n)          x * 2^n rounded once, for the exponents of this file. Where no instruction does it: times
//                        2^(n >> 1), exactly, and then times 2^(n - (n >> 1))
#pragma once
#include <cstring>

#include "kernels/kernel_api.h"

// Called twice, for whole vectors and for the rest: without it the compiler keeps a call in the loop. CUDA code defines
// it as device code.
#ifndef TERSOR_INLINE
#define TERSOR_INLINE __attribute__((always_inline)) inline
#endif

namespace {

// exp(-y) = 2^n exp(r), |r| <= 0.3466
template <typename V>
struct Reduced {
  typename V::F n, r;
};

// y in [0, 115]
template <typename V>
TERSOR_INLINE Reduced<V> Reduce(typename V::F y) {
  const typename V::F shift = V::Set(0x1.8p23f);  // adding it rounds to an integer
  const typename V::F n = V::Sub(V::Fma(y, V::Set(-0x1.715476p0f), shift), shift);
  return {n, V::Fma(n, V::Set(0x1.05c61p-29f), V::Fms(n, V::Set(-0x1.62e43p-1f), y))};  // the Fms is exact
}

template <typename V>
TERSOR_INLINE typename V::F ExpMinusOne(typename V::F r) {
  typename V::F q = V::Fma(r, V::Set(0x1.6a225ap-10f), V::Set(0x1.123b02p-7f));
  q = V::Fma(r, q, V::Set(0x1.5558f8p-5f));
  q = V::Fma(r, q, V::Set(0x1.555490p-3f));
  q = V::Fma(r, q, V::Set(0x1.fffffcp-2f));
  return V::Fma(V::Mul(r, r), q, r);
}

template <typename V>
TERSOR_INLINE typename V::F Relu(typename V::F v) {
  return V::Max(V::Set(0.0f), v);
}

// v / (1 + E) for v >= 0 and v E / (1 + E) for v < 0, with E = exp(-y) = 2^n exp(r). The power of two comes last, so
// the tail keeps its precision down to underflow. At v = -limit the result is 0.
template <typename V>
TERSOR_INLINE typename V::F TimesSigmoid(typename V::F v, const Reduced<V>& e, float limit) {
  using F = typename V::F;
  const F one = V::Set(1.0f), s = ExpMinusOne<V>(e.r), bounded = V::Max(V::Set(-limit), v);
  const F denominator = V::Add(one, V::Scale(V::Add(one, s), e.n));
  const F quotient = V::Div(V::IfNegative(v, V::Fma(bounded, s, bounded), v), denominator);
  return V::IfNegative(v, V::Scale(quotient, e.n), quotient);
}

template <typename V>
TERSOR_INLINE typename V::F Silu(typename V::F v) {
  return TimesSigmoid<V>(v, Reduce<V>(V::Min(V::Abs(v), V::Set(110.0f))), 110.0f);
}

// 0.5 v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3))) = v / (1 + exp(-y)) with y = v (c0 + c1 v^2). In the tail y is near
// 100 and its error is the relative error of the result, so y is kept to twice the precision.
template <typename V>
TERSOR_INLINE typename V::F GeluTanh(typename V::F v) {
  using F = typename V::F;
  const F c0 = V::Set(0x1.9884p0f), c0_low = V::Set(0x1.4cf50ep-18f);
  const F c1 = V::Set(0x1.2444f2p-4f), c1_low_share = V::Set(0x1.20c792p-25f);
  const F a = V::Min(V::Abs(v), V::Set(11.0f)), square = V::Mul(a, a);
  const F square_low = V::Fma(square, c1_low_share, V::Fms(a, a, square));
  const F sum = V::Fma(c1, square, c0);
  const F sum_low = V::Add(V::Fma(c1, square_low, V::Fma(c1, square, V::Sub(c0, sum))), c0_low);  // the Sub is exact
  const F y = V::Mul(a, sum), y_low = V::Fma(a, sum_low, V::Fms(a, sum, y));
  Reduced<V> e = Reduce<V>(y);
  e.r = V::Sub(e.r, y_low);
  return TimesSigmoid<V>(v, e, 11.0f);
}

// max(v, 0) - a Q(a) with a = |v| and Q(a) = erfc(a / sqrt 2) / 2 = -exp(-a^2 / 2) h(t) / (a + c), t = (a - c) / (a +
// c). The polynomial h is negative, so that a zero keeps its sign. a^2 is kept to twice the precision.
template <typename V>
TERSOR_INLINE typename V::F Gelu(typename V::F v) {
  using F = typename V::F;
  const F a = V::Min(V::Abs(v), V::Set(14.5f)), square = V::Mul(a, a), square_low = V::Fms(a, a, square);
  Reduced<V> e = Reduce<V>(V::Mul(V::Set(0.5f), square));
  e.r = V::Fma(V::Set(-0.5f), square_low, e.r);
  const F s = ExpMinusOne<V>(e.r);
  const F share = V::Div(a, V::Add(a, V::Set(0x1.72p1f)));
  const F t = V::Fma(V::Set(2.0f), share, V::Set(-1.0f));
  F h = V::Fma(t, V::Set(0x1.5239c8p-12f), V::Set(0x1.6e7b7ep-11f));
  h = V::Fma(t, h, V::Set(-0x1.d69848p-10f));
  h = V::Fma(t, h, V::Set(-0x1.69ff52p-8f));
  h = V::Fma(t, h, V::Set(0x1.c44f6ap-7f));
  h = V::Fma(t, h, V::Set(0x1.1147b6p-5f));
  h = V::Fma(t, h, V::Set(-0x1.ad1ee8p-3f));
  h = V::Fma(t, h, V::Set(0x1.fa8b04p-2f));
  h = V::Fma(t, h, V::Set(-0x1.7326e0p-1f));
  h = V::Mul(h, share);
  return V::Add(V::Max(V::Set(-0.0f), v), V::Scale(V::Fma(h, s, h), e.n));
}

// v Phi(v) with Phi(v) = 1 / 2 + v h(v^2) on [-4.25, 4.25] and constant beyond, h of degree 8: off by at most 1.1e-5
// |v|.
template <typename V>
TERSOR_INLINE typename V::F NearGelu(typename V::F v, const float* h) {
  using F = typename V::F;
  const F low = V::Max(V::Set(-4.25f), v), x = V::Min(V::Set(4.25f), low);
  const F t = V::Fma(V::Mul(x, x), V::Set(0x1.c5894ep-4f), V::Set(-1.0f));
  F sum = V::Fma(t, V::Set(h[0]), V::Set(h[1]));
  for (int i = 2; i < 9; ++i) sum = V::Fma(t, sum, V::Set(h[i]));
  return V::Mul(low, V::Fma(x, sum, V::Set(0.5f)));
}

template <typename V>
TERSOR_INLINE typename V::F NearGeluErf(typename V::F v) {
  constexpr float h[] = {0x1.42cffap-9f,  -0x1.a3cc3ep-8f, 0x1.193d34p-7f,  -0x1.ce582cp-7f, 0x1.a34eeap-6f,
                         -0x1.425d58p-5f, 0x1.c84d4cp-5f,  -0x1.4acc94p-4f, 0x1.53d5eep-3f};
  return NearGelu<V>(v, h);
}

template <typename V>
TERSOR_INLINE typename V::F NearGeluTanh(typename V::F v) {
  constexpr float h[] = {0x1.814188p-9f,  -0x1.d71854p-8f, 0x1.154402p-7f,  -0x1.b4a37ep-7f, 0x1.9c0060p-6f,
                         -0x1.418428p-5f, 0x1.c8a542p-5f,  -0x1.4b3508p-4f, 0x1.53ed94p-3f};
  return NearGelu<V>(v, h);
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

template <typename V>
void ApplyNear(tersor::Activation activation, int64_t n, float* x) {
  switch (activation) {
    case tersor::Activation::kGelu:
      return ApplyFunction<V, NearGeluErf<V>>(n, x);
    case tersor::Activation::kGeluTanh:
      return ApplyFunction<V, NearGeluTanh<V>>(n, x);
    default:
      return ApplyActivation<V>(activation, n, x);
  }
}

}  // namespace

#undef TERSOR_INLINE

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

// n of y in [0, 115]
template <typename V>
TERSOR_INLINE typename V::F Binades(typename V::F y) {
  const typename V::F shift = V::Set(0x1.8p23f);  // adding it rounds to an integer
  return V::Sub(V::Fma(y, V::Set(-0x1.715476p0f), shift), shift);
}

template <typename V>
TERSOR_INLINE Reduced<V> Reduce(typename V::F y) {
  const typename V::F n = Binades<V>(y);
  return {n, V::Fma(n, V::Set(0x1.05c61p-29f), V::Fms(n, V::Set(-0x1.62e43p-1f), y))};  // the Fms is exact
}

// of y + y_low
template <typename V>
TERSOR_INLINE Reduced<V> Reduce(typename V::F y, typename V::F y_low) {
  const typename V::F n = Binades<V>(y);
  return {n, V::Add(V::Fms(n, V::Set(-0x1.62e43p-1f), y), V::Fms(n, V::Set(0x1.05c61p-29f), y_low))};
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

// (n + n_low) / (d + d_low) for d in [1, 2], rounded about once: the quotient n / d and what it leaves over.
template <typename V>
TERSOR_INLINE typename V::F Divide(typename V::F n, typename V::F n_low, typename V::F d, typename V::F d_low) {
  using F = typename V::F;
  const F q = V::Div(n, d), inverse = V::Fma(d, V::Set(-0x1.e1e1e2p-2f), V::Set(0x1.696968p0f));  // within 6 %
  const F over = V::Fma(q, d_low, V::Fms(q, d, n));                                               // the Fms is exact
  return V::Fma(V::Sub(n_low, over), inverse, q);
}

// max(v, 0) - a E / (1 + E) with a = |v| as far as it matters and E = exp(-y) = 2^n (1 + s). The power of two comes
// last, so the tail keeps its precision down to underflow. A zero keeps its sign.
template <typename V>
TERSOR_INLINE typename V::F TimesSigmoid(typename V::F v, typename V::F a, const Reduced<V>& e) {
  using F = typename V::F;
  const F one = V::Set(1.0f), s = ExpMinusOne<V>(e.r), power = V::Scale(one, e.n), base = V::Add(one, power);
  const F d = V::Fma(power, s, base), d_low = V::Fma(power, s, V::Sub(base, d));
  const F n = V::Fma(a, s, a), n_low = V::Fma(a, s, V::Sub(a, n));
  return V::Sub(V::Max(V::Set(-0.0f), v), V::Scale(Divide<V>(n, n_low, d, d_low), e.n));
}

template <typename V>
TERSOR_INLINE typename V::F Silu(typename V::F v) {
  const typename V::F a = V::Min(V::Abs(v), V::Set(110.0f));
  return TimesSigmoid<V>(v, a, Reduce<V>(a));
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
  return TimesSigmoid<V>(v, a, Reduce<V>(y, y_low));
}

// max(v, 0) - a Q(a) with a = |v| as far as it matters and Q(a) = erfc(a / sqrt 2) / 2 = exp(-a^2 / 2) h(t) / (a + c),
// t = (a - c) / (a + c). a^2, share = a / (a + c), h and their product are kept to twice the precision; a share that is
// off by a part of itself makes h off by about -1.25 share times that part.
template <typename V>
TERSOR_INLINE typename V::F Gelu(typename V::F v) {
  using F = typename V::F;
  const F a = V::Min(V::Abs(v), V::Set(14.5f)), half = V::Mul(V::Set(0.5f), a), y = V::Mul(half, a);
  const Reduced<V> e = Reduce<V>(y, V::Fms(half, a, y));
  const F s = ExpMinusOne<V>(e.r), c = V::Set(3.375f), one_over_c = V::Set(0x1.2f684cp-2f);
  const F d = V::Add(a, c), d_low = V::Sub(V::Min(a, c), V::Sub(d, V::Max(a, c))), share = V::Div(a, d);
  const F over = V::Fma(share, d_low, V::Fms(share, d, a));  // the Fms is exact
  const F t = V::Fma(V::Set(2.0f), share, V::Set(-1.0f));
  F q = V::Fma(t, V::Set(0x1.1f14c4p-13f), V::Set(0x1.482382p-12f));
  q = V::Fma(t, q, V::Set(-0x1.bdc90ap-11f));
  q = V::Fma(t, q, V::Set(-0x1.277fbp-9f));
  q = V::Fma(t, q, V::Set(0x1.006648p-7f));
  q = V::Fma(t, q, V::Set(0x1.1dbed8p-7f));
  q = V::Fma(t, q, V::Set(-0x1.92fb6ap-4f));
  q = V::Fma(t, q, V::Set(0x1.2e76fep-2f));
  q = V::Fma(t, q, V::Set(-0x1.1b21ccp-1f));
  const F h0 = V::Set(0x1.7b6eep-1f), h = V::Fma(t, q, h0), h_low = V::Fma(t, q, V::Sub(h0, h));
  // (1 - 1.25 share) / d, where 1 / d = (1 - share) / c
  const F weight = V::Fma(share, V::Fma(share, V::Set(0x1.7b425ep-2f), V::Set(-0x1.555556p-1f)), one_over_c);
  const F p = V::Mul(h, share);
  const F p_low = V::Fma(share, h_low, V::Sub(V::Fms(h, share, p), V::Mul(h, V::Mul(over, weight))));
  const F product = V::Add(p, V::Fma(p, s, V::Fma(p_low, s, p_low)));
  return V::Sub(V::Max(V::Set(-0.0f), v), V::Scale(product, e.n));
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

// Cells of recurrent layers over a vector type of floats: one algorithm, so that every instruction set gives the same
// bits. docs/recurrent.md has the errors of sigmoid and tanh.
//
// Included only by kernels/<isa>/recurrent.cc. V: the lanes.h of the instruction set.
#pragma once
#include "kernels/activation_math.h"
#include "kernels/recurrent_api.h"

namespace {

template <typename V>
struct Recurrent {
  using F = typename V::F;
  static constexpr int64_t kLanes = V::kLanes;

  // 1 / (1 + E) for v >= 0 and E / (1 + E) below, E = exp(-|v|) = 2^n (1 + s).
  [[gnu::always_inline]] static F Sigmoid(F v) {
    const Reduced<V> e = Reduce<V>(V::Min(V::Set(110.0f), V::Abs(v)));  // in this order, so that NaN stays
    const F one = V::Set(1.0f), s = ExpMinusOne<V>(e.r), power = V::Scale(one, e.n), base = V::Add(one, power);
    const F d = V::Fma(power, s, base), d_low = V::Fma(power, s, V::Sub(base, d));
    const F more = V::IfNegative(v, s, V::Set(0.0f)), n = V::Add(one, more), n_low = V::Sub(more, V::Sub(n, one));
    const F q = Divide<V>(n, n_low, d, d_low);
    return V::IfNegative(v, V::Scale(q, e.n), q);
  }

  // -u / (u + 2) with u = exp(-2 |v|) - 1 = 2^n s + (2^n - 1), where nothing cancels; the sign is that of v.
  [[gnu::always_inline]] static F Tanh(F v) {
    const F a = V::Min(V::Set(20.0f), V::Abs(v)), zero = V::Set(0.0f), two = V::Set(2.0f);
    const Reduced<V> e = Reduce<V>(V::Add(a, a));
    const F s = ExpMinusOne<V>(e.r), power = V::Scale(V::Set(1.0f), e.n), base = V::Sub(power, V::Set(1.0f));
    const F u = V::Fma(power, s, base), u_low = V::Fma(power, s, V::Sub(base, u));
    const F d = V::Add(u, two), d_low = V::Add(V::Sub(u, V::Sub(d, two)), u_low);
    const F t = Divide<V>(u, u_low, d, d_low);
    return V::IfNegative(v, t, V::Sub(zero, t));
  }

  [[gnu::always_inline]] static F GruStep(const F* x, const F* h, F state) {
    const F r = Sigmoid(V::Add(x[0], h[0])), z = Sigmoid(V::Add(x[1], h[1])), m = Tanh(V::Fma(r, h[2], x[2]));
    return V::Fma(z, V::Sub(state, m), m);
  }

  [[gnu::always_inline]] static F LstmStep(const F* x, const F* h, F* cell) {
    const F i = Sigmoid(V::Add(x[0], h[0])), f = Sigmoid(V::Add(x[1], h[1])), g = Tanh(V::Add(x[2], h[2]));
    *cell = V::Fma(f, *cell, V::Mul(i, g));
    return V::Mul(Sigmoid(V::Add(x[3], h[3])), Tanh(*cell));
  }

  // The first `live` lanes of a vector; the others are 0.
  [[gnu::always_inline]] static F LoadPart(const float* p, int64_t live) {
    if (live >= kLanes) return V::Load(p);
    float rest[kLanes] = {};
    std::memcpy(rest, p, static_cast<size_t>(live) * sizeof(float));
    return V::Load(rest);
  }
  [[gnu::always_inline]] static void StorePart(float* p, F v, int64_t live) {
    if (live >= kLanes) return V::Store(p, v);
    float rest[kLanes];
    V::Store(rest, v);
    std::memcpy(p, rest, static_cast<size_t>(live) * sizeof(float));
  }

  static void Gru(int64_t n, const float* x, const float* h, float* state) {
    for (int64_t i = 0; i < n; i += kLanes) {
      const int64_t live = n - i;
      const F from_x[3] = {LoadPart(x + i, live), LoadPart(x + n + i, live), LoadPart(x + 2 * n + i, live)};
      const F from_h[3] = {LoadPart(h + i, live), LoadPart(h + n + i, live), LoadPart(h + 2 * n + i, live)};
      StorePart(state + i, GruStep(from_x, from_h, LoadPart(state + i, live)), live);
    }
  }

  static void Lstm(int64_t n, const float* x, const float* h, float* cell, float* state) {
    for (int64_t i = 0; i < n; i += kLanes) {
      const int64_t live = n - i;
      F from_x[4], from_h[4];
      for (int64_t g = 0; g < 4; ++g) {
        from_x[g] = LoadPart(x + g * n + i, live);
        from_h[g] = LoadPart(h + g * n + i, live);
      }
      F c = LoadPart(cell + i, live);
      StorePart(state + i, LstmStep(from_x, from_h, &c), live);
      StorePart(cell + i, c, live);
    }
  }

  static void ApplySigmoid(int64_t n, float* x) { ApplyFunction<V, Sigmoid>(n, x); }
  static void ApplyTanh(int64_t n, float* x) { ApplyFunction<V, Tanh>(n, x); }

  static constexpr tersor::RecurrentKernel Kernel(const char* id) { return {id, Gru, Lstm, ApplySigmoid, ApplyTanh}; }
};

}  // namespace

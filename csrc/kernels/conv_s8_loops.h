// Finish, maximum and sum of rows as plain loops, which the compiler turns into vectors of the instruction set that it
// is compiled for. Include inside an anonymous namespace of kernels/<isa>/conv_s8.cc, after <cstring>.

// |v| < 2^22; adding 1.5 * 2^23 rounds to an integer, ties to even.
inline int32_t RoundHalfEven(float v) {
  const float shifted = v + 0x1.8p23f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  return bits - 0x4b400000;
}

template <bool kResidual, bool kHardSwish, bool kFloat>
inline void FinishRow(const FinishS8Args& g, const int32_t* acc, const uint8_t* residual, float* y_f32, uint8_t* y) {
  const float low = g.low, high = g.high, inv_scale = g.inv_scale, residual_scale = g.residual_scale;
  const float least = static_cast<float>(-g.zero), most = static_cast<float>(255 - g.zero);
  const int32_t zero = g.zero, residual_zero = g.residual_zero, n = g.n;
  const int32_t* offset = g.offset;
  const float *scale = g.scale, *bias = g.bias;
#pragma GCC ivdep
  for (int32_t i = 0; i < n; ++i) {
    float v = static_cast<float>(acc[i] - offset[i]) * scale[i] + bias[i];
    if (kResidual) v = v + static_cast<float>(residual[i] - residual_zero) * residual_scale;
    if (kHardSwish) {
      float gate = v + 3.0f;
      gate = 0.0f > gate ? 0.0f : gate;
      gate = 6.0f < gate ? 6.0f : gate;
      v = v * gate * 0x1.555556p-3f;
    } else {
      v = low > v ? low : v;
      v = high < v ? high : v;
    }
    if (kFloat) {
      y_f32[i] = v;
    } else {
      float t = v * inv_scale;
      t = t > least ? t : least;
      t = t < most ? t : most;
      y[i] = static_cast<uint8_t>(RoundHalfEven(t) + zero);
    }
  }
}

template <bool kResidual, bool kHardSwish, bool kFloat>
void FinishRows(const FinishS8Args& g) {
  for (int32_t i = 0; i < g.m; ++i)
    FinishRow<kResidual, kHardSwish, kFloat>(g, g.acc + i * g.ld_acc, kResidual ? g.residual + i * g.ldr : nullptr,
                                             kFloat ? g.y_f32 + i * g.ldy : nullptr,
                                             kFloat ? nullptr : g.y + i * g.ldy);
}

inline void FinishLoops(const FinishS8Args& g) {
  using Run = void (*)(const FinishS8Args&);
  static constexpr Run kRuns[] = {FinishRows<false, false, false>, FinishRows<false, false, true>,
                                  FinishRows<false, true, false>,  FinishRows<false, true, true>,
                                  FinishRows<true, false, false>,  FinishRows<true, false, true>,
                                  FinishRows<true, true, false>,   FinishRows<true, true, true>};
  kRuns[(g.residual != nullptr ? 4 : 0) + (g.hard_swish ? 2 : 0) + (g.y_f32 != nullptr ? 1 : 0)](g);
}

inline void MaxRow(int64_t n, const uint8_t* x, uint8_t* y) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] > y[i] ? x[i] : y[i];
}

inline void SumRow(int64_t n, const uint8_t* x, int32_t* acc) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) acc[i] += x[i];
}

// Sums and maxima of 16 floats, one at a time.
#pragma once
#include "kernels/scalar/lanes.h"

namespace {

struct LaneSums : Lane {
  static float Sum16(const F* v) {
    return Fold(v, [](F a, F b) { return a + b; });
  }
  static float Max16(const F* v) {
    return Fold(v, [](F a, F b) { return Max(a, b); });
  }

 private:
  template <typename Op>
  static float Fold(const F* v, Op op) {
    float part[16];
    std::memcpy(part, v, sizeof part);
    for (int half = 8; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) part[i] = op(part[i], part[i + half]);
    return part[0];
  }
};

}  // namespace

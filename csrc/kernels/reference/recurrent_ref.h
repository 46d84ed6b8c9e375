// The cells by definition, in double precision.
#pragma once
#include <cmath>
#include <cstdint>

namespace tersor::reference {

inline double Sigmoid(double v) { return 1.0 / (1.0 + std::exp(-v)); }

// Gates r, z, n of one element: from the input, and from the state.
inline double Gru(const double* x, const double* h, double state) {
  const double r = Sigmoid(x[0] + h[0]), z = Sigmoid(x[1] + h[1]), m = std::tanh(x[2] + r * h[2]);
  return (1.0 - z) * m + z * state;
}

// Gates i, f, g, o.
inline double Lstm(const double* x, const double* h, double* cell) {
  *cell = Sigmoid(x[1] + h[1]) * *cell + Sigmoid(x[0] + h[0]) * std::tanh(x[2] + h[2]);
  return Sigmoid(x[3] + h[3]) * std::tanh(*cell);
}

}  // namespace tersor::reference

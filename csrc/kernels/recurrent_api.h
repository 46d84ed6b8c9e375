// The part of kernel_api.h that is about recurrent cells, under its rules.
#pragma once
#include "kernels/kernel_api.h"

namespace tersor {

// One row of a recurrent layer, from its gates to its state. x and h are the sums of the gates over the input and over
// the state, biases included, gate after gate as torch has them, [gates][n].
struct RecurrentKernel {
  const char* id;  // recurrent_<isa>
  // Gates r, z, n: r = sigmoid(x_r + h_r), z = sigmoid(x_z + h_z), m = tanh(fma(r, h_n, x_n)), state = fma(z, state -
  // m, m).
  void (*gru)(int64_t n, const float* x, const float* h, float* state);
  // Gates i, f, g, o: cell = fma(sigmoid(f), cell, sigmoid(i) * tanh(g)), state = sigmoid(o) * tanh(cell).
  void (*lstm)(int64_t n, const float* x, const float* h, float* cell, float* state);
  void (*sigmoid)(int64_t n, float* x);  // in place: what the cells use
  void (*tanh)(int64_t n, float* x);
};

}  // namespace tersor

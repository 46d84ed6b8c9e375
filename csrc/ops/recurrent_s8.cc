#include "tersor/recurrent_s8.h"

#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "core/registry.h"
#include "kernels/recurrent_api.h"
#include "ops/packed_recurrent.h"

namespace tersor {
namespace {

[[noreturn]] void Fail(const std::string& what) { throw Error("recurrent_s8: " + what); }

void CheckArgs(const RecurrentArgs& args, const PackedViewRecurrent& weight) {
  int64_t rows = 0, size = args.batch;
  for (int64_t t = 0; t < args.steps; ++t) {
    if (args.batch_sizes[t] < 1 || args.batch_sizes[t] > size || (t == 0 && args.batch_sizes[0] != args.batch))
      Fail("batch_sizes: expected sizes that begin with " + std::to_string(args.batch) + " and do not grow, got " +
           std::to_string(args.batch_sizes[t]) + " at step " + std::to_string(t));
    size = args.batch_sizes[t];
    rows += size;
  }
  if (rows != args.rows)
    Fail("x has " + std::to_string(args.rows) + " rows, batch_sizes stand for " + std::to_string(rows));
  if (args.ldx < weight.spec.input && args.rows > 1) Fail("row stride of x is shorter than a row");
  if (args.rows > 0 && (args.x == nullptr || args.y == nullptr || args.state == nullptr)) Fail("a null argument");
  if (weight.spec.cell == Cell::kLstm && args.rows > 0 && args.cell == nullptr) Fail("an LSTM needs a cell state");
}

// The two products of a layer differ in their weight only.
LinearS8Args Gates(const PackedViewRecurrent& weight, bool of_input, int64_t rows, const float* x, int64_t ldx,
                   float* y) {
  LinearS8Args linear{};
  linear.m = rows;
  linear.x = x;
  linear.ldx = ldx;
  linear.packed = of_input ? weight.input : weight.hidden;
  linear.packed_bytes = of_input ? weight.input_bytes : weight.hidden_bytes;
  if (weight.spec.bias) linear.bias = of_input ? weight.input_bias : weight.hidden_bias;
  linear.y = y;
  linear.ldy = weight.width;
  return linear;
}

void Step(const RecurrentArgs& args, const PackedViewRecurrent& weight, int64_t size, const float* from_x, float* gates,
          float* y, const Executor& executor) {
  const RecurrentKernel& kernel = *Selected().recurrent;
  const int64_t n = weight.spec.hidden;
  LinearS8(Gates(weight, false, size, args.state, n, gates), executor);
  for (int64_t i = 0; i < size; ++i) {
    const float *x = from_x + i * weight.width, *h = gates + i * weight.width;
    float* state = args.state + i * n;
    if (weight.spec.cell == Cell::kGru)
      kernel.gru(n, x, h, state);
    else
      kernel.lstm(n, x, h, args.cell + i * n, state);
  }
  std::memcpy(y, args.state, static_cast<size_t>(size * n) * sizeof(float));
}

}  // namespace

void RecurrentS8(const RecurrentArgs& args, const Executor& executor) {
  const PackedViewRecurrent weight = ViewPackedRecurrent(args.packed, args.packed_bytes);
  CheckArgs(args, weight);
  if (args.rows == 0) return;
  const int64_t n = weight.spec.hidden;
  // Memory of its own: the products use the thread's scratch.
  const std::unique_ptr<float[]> gates(
      new (std::nothrow) float[static_cast<size_t>((args.rows + args.batch) * weight.width)]);
  if (gates == nullptr) Fail("out of memory for the gates");
  float *of_x = gates.get(), *of_state = of_x + args.rows * weight.width;
  LinearS8(Gates(weight, true, args.rows, args.x, args.ldx, of_x), executor);
  int64_t row = args.reverse ? args.rows : 0;
  for (int64_t t = 0; t < args.steps; ++t) {
    const int64_t size = args.batch_sizes[args.reverse ? args.steps - 1 - t : t];
    if (args.reverse) row -= size;
    Step(args, weight, size, of_x + row * weight.width, of_state, args.y + row * n, executor);
    if (!args.reverse) row += size;
  }
}

}  // namespace tersor

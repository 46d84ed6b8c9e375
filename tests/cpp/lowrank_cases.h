// Calls of lowrank_f32 and lowrank_s8, their definitions, and the comparison bit for bit.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "kernels/reference/lowrank_ref.h"
#include "linear_run.h"
#include "tersor/lowrank.h"

namespace tersor::testing {

// x, bias, residual, dtype and activation are those of the base; its integers are the dense weight of the int8 form.
struct LowRankCase : LinearCase {
  int64_t rank;
  bool with_dense = false;
  std::vector<float> down, up;  // [rank][k], [n][rank]
  LinearCase down_s8, up_s8;    // the integers of the factors

  LowRankCase(int64_t rows, int64_t columns, int64_t depth, int64_t between, uint64_t seed)
      : LinearCase(rows, columns, depth, seed),
        rank(between),
        down_s8(rows, between, depth, seed + 1000),
        up_s8(rows, columns, between, seed + 2000) {
    Random random(seed + 3000);
    for (int64_t i = 0; i < rank * k; ++i) down.push_back(random.Uniform(-1.0f, 1.0f));
    for (int64_t i = 0; i < n * rank; ++i) up.push_back(random.Uniform(-1.0f, 1.0f));
  }

  std::vector<float> Rounded(std::vector<float> y) const {
    RunnableKernelSets().front()->activation->apply(activation, m * n, y.data());
    for (float& v : y) v = Round(v);
    return y;
  }

  std::vector<float> ExpectedF32() const {
    std::vector<float> y(static_cast<size_t>(m * n));
    reference::LowRankF32(m, n, k, rank, x.data(), down.data(), up.data(), with_bias ? bias.data() : nullptr,
                          with_residual ? residual.data() : nullptr, y.data());
    return Rounded(std::move(y));
  }

  std::vector<float> ExpectedS8() const {
    LinearCase first = down_s8, second = up_s8;
    first.x = x;
    first.x_scale = x_scale;
    first.x_zero_point = x_zero_point;
    first.input_scale = input_scale;
    first.with_bias = false;
    second.x = first.Expected();
    second.bias = bias;
    second.residual = residual;
    second.with_bias = with_bias;
    second.with_residual = with_residual;
    std::vector<float> y = second.Expected();
    if (with_dense) {
      LinearCase dense = *this;
      dense.dtype = DType::kF32;
      dense.activation = Activation::kNone;
      dense.with_bias = false;
      dense.with_residual = true;
      dense.residual = y;
      y = dense.Expected();
    }
    return Rounded(std::move(y));
  }

  std::vector<char> PackF32() const {
    std::vector<char> packed(PackedBytesLowRankF32(n, k, rank));
    PackLowRankF32(n, k, rank, down.data(), up.data(), packed.data(), packed.size());
    return packed;
  }

  LowRankWeightS8 WeightS8() const {
    return {n,
            k,
            rank,
            down_s8.w.data(),
            down_s8.scale.data(),
            up_s8.w.data(),
            up_s8.scale.data(),
            with_dense ? w.data() : nullptr,
            with_dense ? scale.data() : nullptr,
            input_scale.empty() ? nullptr : input_scale.data()};
  }
  std::vector<char> PackS8() const {
    std::vector<char> packed(PackedBytesLowRankS8(n, k, rank, with_dense));
    PackLowRankS8(WeightS8(), packed.data(), packed.size());
    return packed;
  }
};

inline void RunLowRankF32(const LinearS8Args& a, const Executor& executor) {
  const LowRankF32Args args = {a.m,    a.x,        a.ldx, a.dtype,      a.packed, a.packed_bytes,
                               a.bias, a.residual, a.ldr, a.activation, a.y,      a.ldy};
  LowRankF32(args, executor);
}
inline const LinearOp kLowRankF32 = {
    RunLowRankF32, [](const void* packed, size_t bytes) { return InspectPackedLowRankF32(packed, bytes).kernel; }};
inline const LinearOp kLowRankS8 = {
    LowRankS8, [](const void* packed, size_t bytes) { return InspectPackedLowRankS8(packed, bytes).kernel; }};

inline void CheckLowRankF32(const LowRankCase& c, bool in_place = false, const Executor& executor = SerialExecutor()) {
  if (!TooManyFailures()) CheckLinear(c, c.PackF32(), executor, c.ExpectedF32(), in_place, kLowRankF32);
}
inline void CheckLowRankS8(const LowRankCase& c, bool in_place = false, const Executor& executor = SerialExecutor()) {
  if (!TooManyFailures()) CheckLinear(c, c.PackS8(), executor, c.ExpectedS8(), in_place, kLowRankS8);
}

}  // namespace tersor::testing

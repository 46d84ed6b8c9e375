// One call of spmm_f32, its definition, and the comparison bit for bit.
#pragma once
#include <string>
#include <vector>

#include "kernels/reference/spmm_f32_ref.h"
#include "sparse_cases.h"
#include "tersor/spmm_f32.h"

namespace tersor::testing {

struct SparseF32Case {
  int64_t m, n, k;
  DType dtype = DType::kF32;
  Activation activation = Activation::kNone;
  bool with_bias = true, with_residual = false;
  std::vector<float> x, w, bias, residual;  // x and residual hold only values that `dtype` represents

  SparseF32Case(int64_t rows, int64_t columns, int64_t depth, Pattern pattern, uint64_t seed)
      : m(rows), n(columns), k(depth) {
    Random random(seed);
    for (int64_t i = 0; i < m * k; ++i) x.push_back(random.Uniform(-1.5f, 2.0f));
    for (int64_t i = 0; i < m * n; ++i) residual.push_back(random.Uniform(-1.0f, 1.0f));
    for (int64_t j = 0; j < n; ++j) {
      bias.push_back(random.Int(0, 4) == 0 ? -0.0f : random.Uniform(-1.0f, 1.0f));
      for (int64_t p = 0; p < k; ++p)
        w.push_back(Keeps(pattern, j, p, n, k, random) ? random.Uniform(0.1f, 1.0f) - 0.6f : 0.0f);
    }
  }

  float Round(float v) const {
    if (dtype == DType::kF32 || std::isnan(v)) return v;
    return HalfToFloat(dtype, FloatToHalf(dtype, v));
  }
  void Narrow(DType to) {
    dtype = to;
    for (std::vector<float>* values : {&x, &residual})
      for (float& v : *values) v = Round(v);
  }
  int64_t Nnz() const {
    int64_t nnz = 0;
    for (float v : w) nnz += v != 0.0f;
    return nnz;
  }

  std::vector<float> Expected() const {
    std::vector<float> y(static_cast<size_t>(m * n));
    reference::SpmmF32(m, n, k, x.data(), w.data(), with_bias ? bias.data() : nullptr,
                       with_residual ? residual.data() : nullptr, y.data());
    RunnableKernelSets().front()->activation->apply(activation, m * n, y.data());
    for (float& v : y) v = Round(v);
    return y;
  }
  std::vector<char> Pack() const {
    std::vector<char> packed(PackedBytesSpmmF32(n, k, w.data()));
    PackSpmmF32(n, k, w.data(), packed.data(), packed.size());
    return packed;
  }
};

inline void CheckSparseF32(const SparseF32Case& c, const std::vector<char>& packed, const Executor& executor,
                           const std::vector<float>& expected, bool in_place_residual = false) {
  Matrix x(c.dtype, c.m, c.k, 3), y(c.dtype, c.m, c.n, 5), residual(c.dtype, c.m, c.n, 1);
  x.Set(c.x);
  residual.Set(c.residual);
  SpmmF32Args args{};
  args.m = c.m;
  args.x = x.data();
  args.ldx = x.stride();
  args.dtype = c.dtype;
  args.packed = packed.data();
  args.packed_bytes = packed.size();
  args.bias = c.with_bias ? c.bias.data() : nullptr;
  if (c.with_residual) {
    if (in_place_residual) y.Set(c.residual);
    args.residual = in_place_residual ? y.data() : residual.data();
    args.ldr = in_place_residual ? y.stride() : residual.stride();
  }
  args.activation = c.activation;
  args.y = y.data();
  args.ldy = y.stride();
  SpmmF32(args, executor);
  const std::string kernel = InspectPackedSpmmF32(packed.data(), packed.size()).kernel;
  for (int64_t i = 0; i < c.m; ++i)
    for (int64_t j = 0; j < c.n; ++j) {
      const float got = y.Get(i, j), want = expected[static_cast<size_t>(i * c.n + j)];
      CHECK_OR(SameFloat(got, want),
               "%s under %s, m=%d n=%d k=%d dtype %d activation %d threads %d: y[%d][%d] is %a, not %a", kernel.c_str(),
               ActiveIsa().c_str(), static_cast<int>(c.m), static_cast<int>(c.n), static_cast<int>(c.k),
               static_cast<int>(c.dtype), static_cast<int>(c.activation), executor.threads, static_cast<int>(i),
               static_cast<int>(j), static_cast<double>(got), static_cast<double>(want));
    }
  CHECK_OR(y.OutsideUntouched(), "%s m=%d n=%d wrote outside y", kernel.c_str(), static_cast<int>(c.m),
           static_cast<int>(c.n));
}

inline void CheckSparseF32(const SparseF32Case& c, bool in_place_residual = false) {
  if (!TooManyFailures()) CheckSparseF32(c, c.Pack(), SerialExecutor(), c.Expected(), in_place_residual);
}

}  // namespace tersor::testing
